"""The records and the model of llm_finetuning.py."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from bilevel.distributed import gather, rank
from bilevel.errors import DatasetError, OptionError
from bilevel.extras import require
from bilevel.problems.llm import (
    Instruction,
    LibraryCorpus,
    Preference,
    TwoLevelModel,
    library_corpus,
    read_records,
    small_base,
    tokenize,
)


@dataclasses.dataclass
class Data:
    """Tokenized records, and what makes a fresh model."""

    base: str
    preferences: list
    instructions: list
    later_instructions: list
    test_preferences: list
    test_instructions: list

    @classmethod
    def read(cls, args: argparse.Namespace) -> Data:
        if args.sft_data is None:
            corpus = library_corpus(args.records, args.records, args.test_records)
            parts = [
                ("preferences", corpus.preferences),
                ("instructions", corpus.instructions),
                ("later instructions", corpus.later_instructions),
                ("held-out preferences", corpus.test_preferences),
                ("held-out instructions", corpus.test_instructions),
            ]
            base = args.model or pretrained_base(args, corpus)
        else:
            base = args.model or pretrained_base(args, library_corpus(1, 1, 1))
            size, tests = args.records, args.test_records
            preferences = own_records(args, Preference, args.preference_data, size + tests)
            instructions = own_records(args, Instruction, args.sft_data, 2 * size + tests)
            prefers, instructs = args.preference_data, args.sft_data
            parts = [
                (f"{prefers} from record 1 on", preferences[:size]),
                (f"{instructs} from record 1 on", instructions[:size]),
                (f"{instructs} from record {size + 1} on", instructions[size : 2 * size]),
                (f"{prefers} from record {size + 1} on", preferences[size:]),
                (f"{instructs} from record {2 * size + 1} on", instructions[2 * size :]),
            ]
        tokenizer = from_pretrained("AutoTokenizer", base)
        return cls(str(base), *(tokenized(args, tokenizer, *part) for part in parts))

    def model(self, args: argparse.Namespace, seed: int) -> TwoLevelModel:
        dtype = torch.bfloat16 if args.bf16 else torch.float32
        causal = from_pretrained("AutoModelForCausalLM", self.base, dtype=dtype)
        causal.to(args.device)
        precision = torch.bfloat16 if args.bf16 else None
        model = TwoLevelModel(causal, args.rank, args.alpha, args.targets, seed, precision)
        if args.gradient_checkpointing:
            causal.gradient_checkpointing_enable({"use_reentrant": False})
            causal.train()
        return model


def from_pretrained(kind: str, name: str | Path, **options):
    try:
        return getattr(require("transformers", "llm"), kind).from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise OptionError(f"--model {name}: {reason}") from error


def own_records(args: argparse.Namespace, kind: type, source: str, count: int) -> list:
    try:
        return list(read_records(kind, source, template=args.template, count=count, streaming=True))
    except DatasetError as error:
        wanted = f"{args.records} to train on, {args.test_records} held out"
        hint = f" (--records, --test-records: {wanted})" if "are wanted" in str(error) else ""
        raise DatasetError(f"{error}{hint}") from error


def tokenized(args: argparse.Namespace, tokenizer, name: str, records: list) -> list:
    try:
        items = tokenize(records, tokenizer, args.max_length, drop_long=args.drop_long)
    except DatasetError as error:
        raise DatasetError(f"{name}: {error}") from error
    if rank() == 0 and len(items) < len(records):
        print(f"{name}: {len(records) - len(items)} of {len(records)} prompts are too long")
    return items


def pretrained_base(args: argparse.Namespace, corpus: LibraryCorpus) -> Path:
    """The small model of this --out, trained where it is not there yet."""
    folder = args.out / f"base-{args.family}-{args.base_steps}-{corpus.digest}"
    if rank() == 0 and not (folder / "config.json").is_file():
        print(f"pretraining the small model: {args.base_steps} steps", flush=True)
    first_then_others(
        lambda: small_base(
            folder, corpus.texts, family=args.family, steps=args.base_steps, device=args.device
        )
    )
    return folder


def first_then_others(make: Callable):
    """The first process makes it and keeps it on disk, where the others find it."""
    made = make() if rank() == 0 else None
    gather(None)
    return made if rank() == 0 else make()
