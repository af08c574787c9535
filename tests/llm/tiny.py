"""A tiny model, a tokenizer and records, for the tests of LLM fine-tuning."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from bilevel.problems.llm import (
    Instruction,
    Preference,
    TwoLevelModel,
    small_model,
    tokenize,
    train_tokenizer,
)

VERBS = ("Return", "Open", "Close", "Read", "Write", "Remove", "Copy", "Sort")
NOUNS = ("a file", "the list", "each line", "all of the names", "the last entry", "it")
INSTRUCTIONS = tuple(
    Instruction(f"Signature: {verb.lower()}_{i}(x)\nSummary: ", f"{verb} {noun} and say so.")
    for i, verb in enumerate(VERBS)
    for noun in NOUNS
)
PREFERENCES = tuple(
    Preference(each.prompt, each.response, "Do " + other.response.lower())
    for each, other in zip(INSTRUCTIONS, reversed(INSTRUCTIONS), strict=True)
)


@lru_cache(maxsize=1)
def tokenizer() -> Any:
    return train_tokenizer([each.prompt + each.response for each in INSTRUCTIONS], 300)


@lru_cache(maxsize=1)
def instructions() -> Any:
    return tokenize(INSTRUCTIONS, tokenizer(), 64)


@lru_cache(maxsize=1)
def preferences() -> Any:
    return tokenize(PREFERENCES, tokenizer(), 64)


def base(family: str = "llama", dtype: torch.dtype = torch.float64) -> Any:
    model = small_model(family, len(tokenizer()), hidden=16, layers=2, heads=2, context=64)
    return model.to(dtype)


def two_levels(
    family: str = "llama", dtype: torch.dtype = torch.float64, **options
) -> TwoLevelModel:
    """With x and y away from their start, where LoRA's gradients are not zero."""
    model = TwoLevelModel(base(family, dtype), rank=4, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for each in (*model.lora.values(), model.weight):
            each += 0.1 * torch.randn(each.shape, generator=generator, dtype=each.dtype)
    return model
