"""What a pretrained model's layers and labels say about the phones of voices it never heard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bilevel.problems.speech.inputs import SpeechInputs
from bilevel.problems.speech.masking import stack_frames
from bilevel.problems.speech.measures import (
    Estimate,
    code_usage,
    contingency,
    frame_phones,
    majority_accuracy,
    phone_index,
    phone_information,
    probe_layers,
)
from bilevel.problems.speech.model import SpeechModel


@dataclass(frozen=True)
class LabelQuality:
    """What the labels of held-out frames say about their phones.

    Attributes
    ----------
    perplexity, coverage
        How many codes are in use, in effect; the share of the codebook that occurs.
    information
        Mutual information with the phones over their entropy, less what it is by chance.
    accuracy
        Share of frames whose phone is the most frequent one of their code on other voices.
    """

    perplexity: float
    coverage: float
    information: float
    accuracy: float


@dataclass(frozen=True)
class Representation:
    """Measures of a model on held-out voices.

    Attributes
    ----------
    probes
        Share of frames whose phone a linear probe finds, by layer: the stacked features that an
        encoder frame stands for, the front end, layers 1..K.
    anchor, enhanced
        Of the labels of the first codebook.
    """

    probes: list[Estimate]
    anchor: LabelQuality
    enhanced: LabelQuality


def representation(
    model: SpeechModel, train: Iterable[SpeechInputs], test: Iterable[SpeechInputs]
) -> Representation:
    """Measure a calibrated model.

    Parameters
    ----------
    model
        Its enhanced labels use the calibrated statistics.
    train, test
        Loaders of aligned utterances of disjoint voices; gone through a few times.
    """
    index = phone_index([each for batch in train for each in batch.utterances])
    probes = probe_layers(
        _labelled_frames(model, train, index), _labelled_frames(model, test, index), len(index)
    )
    quality = [
        _quality(kind, model, train, test, index) for kind in ("anchor_codes", "enhanced_codes")
    ]
    return Representation(probes, *quality)


def _labelled_frames(
    model: SpeechModel, batches: Iterable[SpeechInputs], index: dict[str, int]
) -> Iterator[tuple[list[Tensor], Tensor]]:
    for batch in batches:
        inputs = model.inputs(batch)
        layers = [stack_frames(inputs.features), *model.hidden_by_layer(inputs)]
        for row, (length, utterance) in enumerate(
            zip(inputs.lengths, inputs.utterances, strict=True)
        ):
            labels = frame_phones(utterance.phones, int(length), index)
            yield [layer[row, :length] for layer in layers], labels


def _quality(
    kind: str,
    model: SpeechModel,
    train: Iterable[SpeechInputs],
    test: Iterable[SpeechInputs],
    index: dict[str, int],
) -> LabelQuality:
    labels = model.options.labels
    sizes = (labels.codes, len(index))
    known = contingency(*_codes_and_phones(kind, model, train, index), sizes)
    codes, phones = _codes_and_phones(kind, model, test, index)
    usage = code_usage(codes, labels.codes)
    return LabelQuality(
        perplexity=usage.perplexity,
        coverage=usage.coverage,
        information=phone_information(codes, phones, sizes).corrected,
        accuracy=majority_accuracy(known, contingency(codes, phones, sizes)),
    )


def _codes_and_phones(
    kind: str, model: SpeechModel, batches: Iterable[Any], index: dict[str, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    codes, phones = [], []
    for batch in batches:
        found, valid = getattr(model, kind)(batch)
        codes.append(found[..., 0][valid].cpu())
        phones += [
            frame_phones(utterance.phones, int(length), index)
            for length, utterance in zip(batch.lengths, batch.utterances, strict=True)
        ]
    return torch.cat(codes).numpy(), torch.cat(phones).numpy()
