"""Log-probabilities under the reference model: computed once, kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from bilevel.errors import DatasetError
from bilevel.extras import require
from bilevel.problems.llm.batches import TokenBatch, TokenLoader
from bilevel.problems.llm.log_probabilities import token_log_probabilities
from bilevel.problems.llm.losses import sequence_log_probabilities
from bilevel.problems.llm.model import TwoLevelModel, check_finite, check_items
from bilevel.problems.llm.tokens import Item


def reference_of(model: TwoLevelModel, batch: TokenBatch) -> Tensor:
    """[S], what a batch brings along, or the log-probabilities before adaptation."""
    if batch.reference is not None:
        return batch.reference
    with model.as_reference() as head:
        tokens = token_log_probabilities(model.features(batch), head, batch.targets)
        return sequence_log_probabilities(tokens, batch.lengths)


def reference_log_probabilities(
    model: TwoLevelModel,
    items: Sequence[Item],
    batch_size: int = 16,
    cache: str | Path | None = None,
) -> Tensor:
    """log π₀ of every response, under the model before it was adapted.

    Parameters
    ----------
    model
        The model.
    items
        Tokenized records.
    batch_size
        Records at a time.
    cache
        A folder; the result is kept there under a name made from the tokens and the weights of the
        reference model, and read from there the next time.

    Returns
    -------
    Tensor
        [records, responses of each], float32, on the CPU.

    Raises
    ------
    DatasetError
        Records that do not fit the model, NaN logits, a damaged file in the cache.
    """
    check_items(model, items)
    place = None if cache is None else Path(cache) / f"{_fingerprint(model, items)}.safetensors"
    if place is not None and place.is_file():
        return _read(place, (len(items), len(items[0])))
    rows = []
    for batch in TokenLoader(items, batch_size, device=model.device):
        values = reference_of(model, batch)
        check_finite(values, batch, "the reference log-probability")
        rows.append(values.float().cpu().reshape(len(items[0]), -1).T)
    result = torch.cat(rows).contiguous()
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        require("safetensors.torch", "llm").save_file({"reference": result}, place)
    return result


def _read(place: Path, shape: tuple[int, int]) -> Tensor:
    try:
        result: Tensor = require("safetensors.torch", "llm").load_file(place)["reference"]
    except Exception as error:  # of a Rust library: one of its own
        raise DatasetError(f"{place} is damaged ({error}): delete it") from error
    if result.shape != shape:
        raise DatasetError(f"{place} holds {tuple(result.shape)} numbers, not {shape}: delete it")
    return result


def _fingerprint(model: TwoLevelModel, items: Sequence[Item]) -> str:
    found = hashlib.sha256(str(model.autocast).encode())
    for item in items:
        for tokens in item:
            found.update(f"{tokens.prompt_length}:{tokens.ids}".encode())
    with model.as_reference() as head:
        frozen = [p for name, p in model.backbone.named_parameters() if "lora_" not in name]
        for weight in [*frozen, head]:
            part = weight.detach().reshape(-1)
            sums = torch.stack([part.float().sum(), part.float().square().sum()]).double()
            found.update(f"{tuple(weight.shape)} {weight.dtype} {sums.tolist()}".encode())
    return found.hexdigest()[:24]
