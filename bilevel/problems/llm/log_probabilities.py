"""Log-probabilities of tokens, without the logits of a whole batch in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Tokens whose logits exist at one time.
CHUNK = 4096


def token_log_probabilities(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = CHUNK
) -> Tensor:
    r"""log π of each target: :math:`\log \operatorname{softmax}(W h_i)_{t_i}`.

    The logits are formed ``chunk`` tokens at a time, and again in the backward pass: memory is
    O(chunk · V) in the place of O(N · V). A gradient is computed for what requires one alone, so
    one pass can train the head and another the features.

    Parameters
    ----------
    hidden : Tensor
        [N, H], the backbone's last hidden states at the positions that predict the targets.
    weight : Tensor
        W, [V, H], the output head.
    targets : Tensor
        [N] int64.
    chunk : int
        Tokens at a time.

    Returns
    -------
    Tensor
        [N]; in single precision where ``hidden`` has less. Under ``torch.autocast`` the products
        are taken in its precision.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    result: Tensor = _TokenLogProbabilities.apply(hidden, weight, targets, chunk)  # type: ignore[no-untyped-call]
    return result


class _TokenLogProbabilities(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
        head = weight.to(hidden.dtype)
        normalisers, picked = [], []
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = _logits(hidden[part], head)
            normalisers.append(logits.logsumexp(-1))
            picked.append(logits.gather(-1, targets[part, None])[:, 0])
        normaliser = torch.cat(normalisers)
        ctx.save_for_backward(hidden, weight, targets, normaliser)
        ctx.chunk = chunk
        return torch.cat(picked) - normaliser

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normaliser = ctx.saved_tensors
        head = weight.to(hidden.dtype)
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            slopes = _logits(hidden[part], head).sub_(normaliser[part, None]).exp_().neg_()
            slopes[torch.arange(len(slopes), device=slopes.device), targets[part]] += 1.0
            slopes = slopes.mul_(gradients[0][part, None]).to(hidden.dtype)
            if to_hidden is not None:
                torch.mm(slopes, head, out=to_hidden[part])
            if to_weight is not None:
                to_weight += slopes.T @ hidden[part]
        return to_hidden, to_weight, None, None


def _logits(hidden: Tensor, head: Tensor) -> Tensor:
    logits = hidden @ head.T
    return logits if logits.dtype == torch.float64 else logits.float()
