"""Labels drawn from logits over the codes: Gumbel-softmax, hard or soft."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bilevel.problems.speech.options import LabelOptions


@dataclass(frozen=True)
class Labels:
    """Labels of N frames in each codebook.

    Attributes
    ----------
    codes
        [N, codebooks], the code drawn.
    nearest
        [N, codebooks], the code of the largest logit.
    weights
        [N, codebooks, V] where the label is more than the code drawn: soft, or with a gradient.
    """

    codes: Tensor
    nearest: Tensor
    weights: Tensor | None = None

    def cross_entropy(self, log_probabilities: Tensor) -> Tensor:
        """Sum over frames and codebooks of -sum_v y_v log p_v, with log p [N, codebooks, V]."""
        if self.weights is None:
            return F.nll_loss(
                log_probabilities.flatten(0, 1), self.codes.flatten(), reduction="sum"
            )
        return -(self.weights * log_probabilities).sum()


def draw_labels(logits: Tensor, gumbel: Tensor | None, options: LabelOptions) -> Labels:
    r"""Gumbel-softmax labels (arXiv:1611.01144) from logits [N, codebooks, V].

    .. math::
        y = \mathrm{softmax}\bigl((\ell + \sigma G) / \tau\bigr), \quad G \sim \mathrm{Gumbel}(0, 1)

    or, hard, the one-hot vector of its largest entry with the gradient of y. Which code is drawn
    does not depend on τ.
    """
    nearest = logits.argmax(dim=-1)
    if gumbel is not None and options.noise > 0:
        logits = logits + options.noise * gumbel.view_as(logits)
    codes = logits.argmax(dim=-1)
    differentiable = options.target_gradient != "detached"
    if options.selection == "hard" and not differentiable:
        return Labels(codes, nearest)
    soft = torch.softmax(logits / options.temperature, dim=-1)
    if not differentiable:
        return Labels(codes, nearest, soft.detach())
    if options.selection == "soft":
        return Labels(codes, nearest, soft)
    hard = F.one_hot(codes, logits.shape[-1]).to(soft.dtype)
    return Labels(codes, nearest, hard + (soft - soft.detach()))
