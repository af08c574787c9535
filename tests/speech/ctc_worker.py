"""Fine-tunes in one of several processes, on its share of every batch (see ``main``)."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from signals import options, spoken_store

from bilevel.problems.speech import SpeechEncoder
from bilevel.problems.speech.inputs import SpeechInputs
from bilevel.problems.speech.recognition import (
    FineTuningOptions,
    Recogniser,
    SpecAugment,
    Vocabulary,
    finetune,
)

STORE = spoken_store(12, 1)
VOCABULARY = Vocabulary.of_phones(STORE.utterances)
AUGMENT = SpecAugment(time_width=20, mel_width=10)
OPTIONS = FineTuningOptions(
    head_lr=1e-2, encoder_lr=3e-3, clip_norm=1.0, frozen_steps=2, augment=AUGMENT
)


def recogniser(dropout: float = 0.0, vocabulary: Vocabulary = VOCABULARY) -> Recogniser:
    torch.manual_seed(0)
    encoder = dataclasses.replace(options().encoder, layers=1, width=16, dropout=dropout)
    return Recogniser(SpeechEncoder(encoder), vocabulary, dropout)


def batches(part: slice = slice(None)) -> list[SpeechInputs]:
    """Three batches of four utterances, or a part of each."""
    groups = [STORE.select(range(12)[first : first + 4][part]) for first in (0, 4, 8)]
    return [next(iter(group.batches(10_000, seed=5))) for group in groups]


def run(part: slice = slice(None)) -> tuple[list[torch.Tensor], list[float]]:
    heard = recogniser()
    found = finetune(heard, batches(part), steps=6, options=OPTIONS, progress=False)
    return [each.detach() for each in heard.parameters()], found.history["lower"].tolist()


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.save(run([slice(0, 1), slice(1, 4)][rank]), folder / f"rank{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
