r"""What the frames of a representation say about the phones: ridge probes.

A linear map from frames to phones is fitted to the frames of some voices, in closed form, and
scored on the frames of others: the share of frames whose largest output is their phone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from bilevel.errors import ProblemError
from bilevel.options import check_positive
from bilevel.problems.speech.measures.bootstrap import Bootstrap, Estimate

#: Hidden states of one utterance, [T, d] each, by layer, and its frames' labels [T].
LabelledFrames: TypeAlias = tuple[Sequence[Tensor], Tensor]
#: Label of a frame that belongs to no phone; such frames are neither fitted nor scored.
NO_PHONE = -1


@dataclass(frozen=True)
class RidgeProbe:
    r"""A linear classifier of frames, fitted by ridge regression to one-hot labels.

    .. math::
        \min_W \|\tilde X W - \tilde Y\|_F^2 + \lambda n \|W\|_F^2

    with the frames' features standardised and both sides centred; λ is thus relative to a variance
    of 1.

    Attributes
    ----------
    mean, scale
        [d], of the fitted frames.
    weight, bias
        [d, C] and [C].
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, frames: Tensor) -> Tensor:
        """The most likely label [n] of frames [n, d]."""
        standardised = (frames.to(self.mean) - self.mean) / self.scale
        outputs = standardised @ self.weight + self.bias
        if not bool(outputs.isfinite().all()):
            raise ProblemError("the frames to score a probe on contain NaN or infinite values")
        return outputs.argmax(dim=1)


class RidgeFit:
    """Collects what ridge regression needs of frames, utterance after utterance.

    Parameters
    ----------
    width, classes
        Features of a frame, d, and number of labels, C.
    device
        Where the sums are kept, in double precision.
    """

    def __init__(self, width: int, classes: int, device: torch.device | str = "cpu") -> None:
        options = {"dtype": torch.float64, "device": torch.device(device)}
        self.gram = torch.zeros(width, width, **options)  # type: ignore[call-overload]
        self.sums = torch.zeros(classes, width, **options)  # type: ignore[call-overload]
        self.counts = torch.zeros(classes, **options)  # type: ignore[call-overload]

    def add(self, frames: Tensor, labels: Tensor) -> None:
        """Frames [n, d] and their labels [n]; those labelled ``NO_PHONE`` are left out."""
        labels = labels.to(self.gram.device)
        if frames.shape != (len(labels), len(self.gram)):
            raise ProblemError(
                f"frames of shape {tuple(frames.shape)} with {len(labels)} labels, expected "
                f"[{len(labels)}, {len(self.gram)}]"
            )
        kept = labels != NO_PHONE
        frames, labels = frames.to(self.gram)[kept], labels[kept]
        self.gram += frames.T @ frames
        self.sums.index_add_(0, labels, frames)
        self.counts += torch.bincount(labels, minlength=len(self.counts))

    def solve(self, penalty: float = 1e-3) -> RidgeProbe:
        """Fit the probe with λ = ``penalty``.

        Raises
        ------
        ProblemError
            no frame was added, or the frames are not finite.
        """
        check_positive("penalty", penalty)
        total = self.counts.sum()
        if not total > 0:
            raise ProblemError("a probe cannot be fitted to no labelled frames")
        mean = self.sums.sum(0) / total
        covariance = self.gram / total - torch.outer(mean, mean)
        if not covariance.isfinite().all():
            raise ProblemError("the frames to fit a probe to contain NaN or infinite values")
        # A feature that never varies gets no weight.
        variance = covariance.diagonal()
        constant = variance <= 1e-12 * (variance + mean.square())
        scale = torch.where(constant, 1.0, variance.clamp(min=0).sqrt())
        share = self.counts / total
        cross = (self.sums / total).T - torch.outer(mean, share)
        system = covariance / torch.outer(scale, scale)
        system += penalty * torch.eye(len(mean)).to(system)
        weight = torch.linalg.solve(
            system, (cross / scale[:, None]).masked_fill(constant[:, None], 0.0)
        )
        return RidgeProbe(mean, scale, weight, share)


def probe_layers(
    train: Iterable[LabelledFrames],
    test: Iterable[LabelledFrames],
    classes: int,
    penalty: float = 1e-3,
    bootstrap: Bootstrap | None = None,
) -> list[Estimate]:
    """Share of held-out frames whose phone a probe finds, by layer, with an interval.

    Parameters
    ----------
    train, test
        Utterances of disjoint voices: the hidden states of each layer, and the frames' labels.
    classes
        Number of labels.
    penalty
        Of the ridge regression.
    bootstrap
        Draws utterances of the test set.
    """
    fits: list[RidgeFit] = []
    for layers, labels in train:
        if not fits:
            fits = [RidgeFit(each.shape[1], classes, each.device) for each in layers]
        for fit, frames in zip(fits, layers, strict=True):
            fit.add(frames, labels)
    if not fits:
        raise ProblemError("there are no utterances to fit the probes to")
    probes = [fit.solve(penalty) for fit in fits]
    hits, counts = [], []
    for layers, labels in test:
        kept = labels != NO_PHONE
        found = [probe(frames) for probe, frames in zip(probes, layers, strict=True)]
        hits.append([int(((each == labels.to(each)) & kept.to(each)).sum()) for each in found])
        counts.append(int(kept.sum()))
    bootstrap = bootstrap or Bootstrap()
    return [bootstrap.ratio(layer, counts) for layer in np.array(hits).T]
