"""What the solvers share: the protocol of a pretraining run."""

from __future__ import annotations

from dataclasses import replace

from bilevel.problems.speech import PretrainingOptions
from bilevel.problems.speech.protocol import Protocol


def pretrained(source, options, method, steps, seed, teacher=None):
    """A model that begins with the weights, quantisers and batches of its seed."""
    protocol = Protocol(pretraining=PretrainingOptions(steps=steps, lr=3e-3))
    options = replace(options, labels=replace(options.labels, seed=seed))
    found = protocol.pretrain(source, options, method, seed, teacher=teacher, progress=False)
    return found.model
