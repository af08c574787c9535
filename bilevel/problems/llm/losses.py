"""The two objectives, on log-probabilities of responses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sequence_log_probabilities(tokens: Tensor, lengths: Tensor) -> Tensor:
    """log π(response | prompt) of each sequence: the sum over its tokens.

    Parameters
    ----------
    tokens : Tensor
        [N], of the responses' tokens, one sequence after the other.
    lengths : Tensor
        [S] int64, tokens of each response; their sum is N.

    Returns
    -------
    Tensor
        [S].
    """
    # Unsafe: whether the lengths add up is not asked, which would wait for the device.
    sums: Tensor = torch.segment_reduce(tokens, "sum", lengths=lengths, axis=0, unsafe=True)
    return sums


def preference_margins(policy: Tensor, reference: Tensor) -> Tensor:
    r"""How much more than the reference the policy prefers the chosen response.

    .. math:: \log\frac{\pi(c \mid p)}{\pi(r \mid p)} - \log\frac{\pi_0(c \mid p)}{\pi_0(r \mid p)}

    Parameters
    ----------
    policy, reference : Tensor
        [2B] log-probabilities of the responses: B chosen ones, then their B rejected ones.

    Returns
    -------
    Tensor
        [B].
    """
    chosen, rejected = (policy - reference).chunk(2)
    return chosen - rejected


def dpo_loss(policy: Tensor, reference: Tensor, beta: float = 0.1) -> Tensor:
    r"""Direct preference optimisation: the mean of :math:`-\log \sigma(\beta \cdot` margin).

    Parameters
    ----------
    policy, reference : Tensor
        As in :func:`preference_margins`.
    beta : float
        β, how strongly the reference is kept.

    Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7.
    """
    return -F.logsigmoid(beta * preference_margins(policy, reference)).mean()


def sft_loss(tokens: Tensor, count: float | None = None) -> Tensor:
    """Supervised fine-tuning: the responses' mean cross-entropy a token, in nats.

    Parameters
    ----------
    tokens : Tensor
        [N], log-probabilities of the responses' tokens.
    count : float, optional
        By how many tokens the sum is divided, N by default. Batches that make a step together, of
        several processes or one after the other, each divide by the mean of their N: the mean of
        their losses is then that of a single batch of all the tokens.
    """
    return -tokens.sum() / (len(tokens) if count is None else count)
