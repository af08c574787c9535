"""Frozen random projections and codebooks: the labels of BEST-RQ and BiRQ."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from bilevel.distributed import world_size
from bilevel.errors import NotApplicableError
from bilevel.problems.speech.options import LabelOptions

#: The ridge of full whitening, relative to the mean variance: against division by zero alone.
_WHITENING_RIDGE = 1e-3


class Codebook(nn.Module):
    """``codebooks`` sets of V random unit vectors.

    Buffers, so that a checkpoint holds them: a label means nothing without its codebook.
    """

    codes: Tensor

    def __init__(self, options: LabelOptions, generator: torch.Generator) -> None:
        super().__init__()
        shape = (options.codebooks, options.codes, options.dimension)
        codes = F.normalize(torch.randn(shape, generator=generator), dim=-1)
        self.register_buffer("codes", codes)

    def cosines(self, vectors: Tensor) -> Tensor:
        """Cosines [N, codebooks, V] of unit vectors [N, codebooks, dimension] to the codes."""
        with _single_precision(vectors):
            return torch.einsum("nbd,bvd->nbv", vectors, self.codes)

    def nearest(self, vectors: Tensor) -> Tensor:
        """[N, codebooks], the nearest code of each vector."""
        return self.cosines(vectors).argmax(dim=-1)


class RandomProjection(nn.Module):
    """A frozen Xavier-uniform projection [N, inputs] -> unit vectors [N, codebooks, dimension]."""

    matrix: Tensor

    def __init__(self, inputs: int, options: LabelOptions, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = (options.codebooks, options.dimension)
        matrix = torch.empty(options.codebooks * options.dimension, inputs)
        nn.init.xavier_uniform_(matrix, generator=generator)
        self.register_buffer("matrix", matrix)

    def forward(self, inputs: Tensor) -> Tensor:
        with _single_precision(inputs):
            projected = F.linear(inputs.float(), self.matrix)
            return _unit(projected.view(-1, *self.shape))


class NormalisedProjection(nn.Module):
    r"""A frozen projection of hidden states whose vectors are normalised over the batch.

    Hidden states share a mean and a few directions, and quantised as they are they fall on a
    handful of codes. With :math:`p = P\,\mathrm{LN}(z)`, its mean :math:`\mu` and covariance
    :math:`\Sigma` over the valid frames, held fixed in the backward pass, ``shrink`` and ``whiten``
    give

    .. math::
        u = \frac{L^{-1} (p - \mu)}{\|L^{-1} (p - \mu)\|}, \qquad
        L L^\top = \Sigma + \lambda \tfrac{\operatorname{tr} \Sigma}{\dim} I.

    Each choice is an affine map of LN(z). In training it is the batch's (over all processes),
    otherwise the one that :meth:`calibrate` kept.
    """

    matrix: Tensor
    fixed_matrix: Tensor
    fixed_offset: Tensor
    calibrated: Tensor

    def __init__(self, inputs: int, options: LabelOptions, generator: torch.Generator) -> None:
        super().__init__()
        self.normalisation = options.normalisation
        self.ridge = options.ridge if options.normalisation == "shrink" else _WHITENING_RIDGE
        matrix = torch.empty(options.codebooks, options.dimension, inputs)
        for book in matrix:
            nn.init.xavier_uniform_(book, generator=generator)
        self.register_buffer("matrix", matrix)
        self.register_buffer("fixed_matrix", matrix.clone())
        self.register_buffer("fixed_offset", torch.zeros(matrix.shape[:2]))
        self.register_buffer("calibrated", torch.tensor(False))
        self._seen_calibrated = False  # so that the device is asked once

    def forward(self, hidden: Tensor, map: tuple[Tensor, Tensor]) -> Tensor:
        """Unit vectors [N, codebooks, dimension] of hidden states [N, d] under an affine map."""
        matrix, offset = map
        with _single_precision(hidden):
            z = F.layer_norm(hidden.float(), hidden.shape[-1:])
            return _unit(torch.einsum("nd,bkd->nbk", z, matrix) + offset)

    @torch.no_grad()
    def batch_map(
        self, hidden: Tensor, valid: Tensor | None, *, together: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The map by the statistics of a batch [B, T, d], of all processes ``together``."""
        if self.normalisation == "layernorm":
            return self.matrix, torch.zeros_like(self.fixed_offset)
        z = F.layer_norm(hidden.float(), hidden.shape[-1:]).flatten(0, 1)
        weight = torch.ones(len(z), device=z.device) if valid is None else valid.flatten()
        weight, matrix = weight.double(), self.matrix.double()
        if self.normalisation == "standardise":
            z = z.double()
            count, mean, square = _sums(together, weight.sum(), weight @ z, weight @ z**2)
            mean = mean / count
            deviation = (square / count - mean**2).clamp_min(1e-12).sqrt()
            matrix = matrix / deviation
            return matrix.float(), -(matrix @ mean).float()
        with _single_precision(z):
            p = torch.einsum("nd,bkd->nbk", z, self.matrix).double()
        count, mean, second = _sums(
            together,
            weight.sum(),
            torch.einsum("n,nbk->bk", weight, p),
            torch.einsum("n,nbk,nbl->bkl", weight, p, p),
        )
        mean = mean / count
        covariance = second / count - mean[:, :, None] * mean[:, None, :]
        factor = _cholesky(covariance, self.ridge)
        matrix = torch.linalg.solve_triangular(factor, matrix, upper=False)
        offset = -torch.linalg.solve_triangular(factor, mean[:, :, None], upper=False)
        return matrix.float(), offset[:, :, 0].float()

    @property
    def fixed_map(self) -> tuple[Tensor, Tensor]:
        """The map that :meth:`calibrate` kept.

        Raises
        ------
        NotApplicableError
            If it never was called: the statistics of a batch would make labels depend on it.
        """
        self._seen_calibrated = self._seen_calibrated or bool(self.calibrated)
        if not self._seen_calibrated:
            raise NotApplicableError(
                "enhanced labels outside of training need fixed statistics: call "
                "model.calibrate(batches) first"
            )
        return self.fixed_matrix, self.fixed_offset

    def calibrate(self, hidden: Tensor, valid: Tensor | None) -> None:
        """Keep the map of a set of hidden states [B, T, d], this process's own, for later use."""
        matrix, offset = self.batch_map(hidden, valid, together=False)
        self.fixed_matrix.copy_(matrix)
        self.fixed_offset.copy_(offset)
        self.calibrated.fill_(True)

    def forget_calibration(self) -> None:
        """Refuse the map from now on: the encoder is about to change."""
        self.calibrated.fill_(False)
        self._seen_calibrated = False


def _single_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Without autocast: in low precision many frames have another nearest code."""
    return torch.autocast(tensor.device.type, enabled=False)


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors, dim=-1)


def _cholesky(covariance: Tensor, ridge: float) -> Tensor:
    size = covariance.shape[-1]
    variance = covariance.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[:, None, None]
    shifted = covariance + (ridge * variance + 1e-12) * torch.eye(size, device=covariance.device)
    factor: Tensor = torch.linalg.cholesky_ex(shifted).L  # checking would wait for the device
    return factor


def _sums(together: bool, *local: Tensor) -> tuple[Tensor, ...]:
    """Sums over each process's frames, or over those of all."""
    if together and world_size() > 1:
        flat = torch.cat([each.reshape(-1) for each in local])
        dist.all_reduce(flat)
        parts = torch.split(flat, [each.numel() for each in local])
        return tuple(part.view_as(each) for part, each in zip(parts, local, strict=True))
    return local
