"""Preferences through the head that supervised fine-tuning would give, as a bilevel problem."""

from __future__ import annotations

from torch import Tensor

from bilevel.options import check_positive
from bilevel.problem import BilevelProblem
from bilevel.problems.llm.batches import TokenBatch
from bilevel.problems.llm.log_probabilities import CHUNK, token_log_probabilities
from bilevel.problems.llm.losses import dpo_loss, sequence_log_probabilities, sft_loss
from bilevel.problems.llm.model import TwoLevelModel
from bilevel.problems.llm.reference import reference_of


def finetuning_problem(
    model: TwoLevelModel, beta: float = 0.1, chunk: int = CHUNK
) -> BilevelProblem:
    r"""LoRA weights x for the preferences, the head y for the instructions.

    .. math::
        \min_x f_{\mathrm{DPO}}(x, y) \quad\text{s.t.}\quad
        y \in \operatorname*{arg\,min}_{y'} g_{\mathrm{SFT}}(x, y')

    The features of both batches are computed once in a step; the head's update sends nothing back
    into the backbone. Batches are :class:`TokenBatch`: preferences for the upper level,
    instructions for the lower. Where a preference batch brings no reference log-probabilities, they
    are computed with the adapters switched off.

    Parameters
    ----------
    model
        The model; its LoRA weights ``model.lora`` are x, its head ``model.weight`` is y.
    beta
        β of DPO.
    chunk
        Tokens whose logits are in memory at one time.

    Source: arXiv:2507.20400, section 4.
    """
    check_positive("beta", beta)

    def upper(hidden: Tensor, head: Tensor, batch: TokenBatch) -> Tensor:
        tokens = token_log_probabilities(hidden, head, batch.targets, chunk)
        return dpo_loss(
            sequence_log_probabilities(tokens, batch.lengths), reference_of(model, batch), beta
        )

    def lower(hidden: Tensor, head: Tensor, batch: TokenBatch) -> Tensor:
        return sft_loss(token_log_probabilities(hidden, head, batch.targets, chunk), batch.count)

    return BilevelProblem(features=lambda x, batch: model.features(batch), upper=upper, lower=lower)
