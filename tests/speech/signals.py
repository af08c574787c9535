"""Small inputs with structure, for tests that need no audio."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from bilevel.problems.speech import PRESETS, FeatureStore, SpeechInputs, SpeechModel
from bilevel.problems.speech.data import Phone, Utterance


def options(**labels):
    base = PRESETS["tiny"]
    encoder = dataclasses.replace(base.encoder, layers=3, width=32)
    changed = {"layer": 2, "codes": 64, **labels}
    return dataclasses.replace(
        base, encoder=encoder, labels=dataclasses.replace(base.labels, **changed)
    )


def model(seed=0, **labels):
    torch.manual_seed(seed)
    return SpeechModel(options(**labels))


def features(rows, frames, seed=0):
    """Piecewise constant spectra with a little noise: neighbouring frames resemble each other."""
    generator = torch.Generator().manual_seed(seed)
    shapes = torch.randn(rows, -(-frames // 12), 80, generator=generator)
    noise = torch.randn(rows, frames, 80, generator=generator)
    return shapes.repeat_interleave(12, dim=1)[:, :frames] + 0.3 * noise


def inputs(rows=4, frames=96, counts=None, first=0, seed=0):
    x = features(rows, frames, seed)
    counts = np.full(rows, frames) if counts is None else np.asarray(counts)
    for row, count in zip(x, counts, strict=True):
        row[count:] = 0.0
    return SpeechInputs.of(x, counts, list(range(first, first + rows)))


def rows_of(batch, rows):
    """A part of a batch, padded no further than it needs."""
    index = list(rows)
    counts = (
        np.full(len(batch.lengths), batch.features.shape[1])
        if batch.counts is None
        else batch.counts.numpy()
    )[index]
    return SpeechInputs.of(
        batch.features[index][:, : counts.max()], counts, [batch.keys[i] for i in index]
    )


def spoken_store(count, seed=0, phones=6):
    """Utterances of phones with a spectrum each, a voice's tilt and noise."""
    shapes = np.random.default_rng(0).normal(size=(phones, 80))
    random = np.random.default_rng((1, seed))
    rows, utterances = [], []
    for number in range(count):
        tilt = random.normal() * np.linspace(-1, 1, 80)
        frames, spoken, start = [], [], 0.0
        for symbol in random.integers(phones, size=random.integers(6, 12)):
            length = int(random.integers(12, 20))
            frames.append(np.tile(shapes[symbol], (length, 1)))
            spoken.append(Phone("abcdefgh"[symbol], start, start + length / 100))
            start += length / 100
        x = np.concatenate(frames) + 0.5 * tilt
        x = x + 0.4 * random.normal(size=x.shape)
        rows.append(torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float16))
        utterances.append(
            Utterance(f"{seed}-{number}", f"{seed}-{number}.wav", phones=tuple(spoken))
        )
    return FeatureStore(rows, utterances)
