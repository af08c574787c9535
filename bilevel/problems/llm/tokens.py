"""Prompts and responses as token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bilevel.errors import DatasetError
from bilevel.options import check_count
from bilevel.problems.llm.records import Instruction, Preference


@dataclass(frozen=True)
class Tokens:
    """A prompt and a response to it, which ends with the end-of-text token where it fits.

    Attributes
    ----------
    ids
        Of both, one after the other.
    prompt_length
        How many of them are the prompt's.

    Raises
    ------
    DatasetError
        The prompt, or the response, has no token.
    """

    ids: tuple[int, ...]
    prompt_length: int

    def __post_init__(self) -> None:
        if not 1 <= self.prompt_length < len(self.ids):
            raise DatasetError(
                f"prompt_length={self.prompt_length} of {len(self.ids)} tokens: a prompt and a "
                "response need one token each"
            )

    @property
    def response_length(self) -> int:
        """Tokens of the response."""
        return len(self.ids) - self.prompt_length


#: What a record becomes: the chosen and the rejected response, or the one.
Item = tuple[Tokens, ...]


def tokenize(
    records: Iterable[Instruction | Preference],
    tokenizer: Any,
    max_length: int,
    *,
    drop_long: bool = False,
) -> list[Item]:
    """Token ids of every record.

    Responses are cut at ``max_length`` tokens with their prompt. Spaces at the end of a prompt go
    to its responses, since the tokens of most vocabularies begin with theirs.

    Parameters
    ----------
    records
        Of one kind.
    tokenizer
        Of ``transformers``.
    max_length
        The context, in tokens.
    drop_long
        Leave out a record whose prompt leaves no room for a response, in the place of an error.

    Raises
    ------
    DatasetError
        Naming the row: a prompt longer than the context, a response of no tokens; a tokenizer
        without an end-of-text token; no record at all.
    """
    check_count("max_length", max_length, least=2)
    if tokenizer.eos_token_id is None:
        raise DatasetError(
            "the tokenizer has no end-of-text token, so a model could not learn where a response "
            "ends: set tokenizer.eos_token"
        )
    items: list[Item] = []
    for number, record in enumerate(records, start=1):
        if items and len(_responses(record)) != len(items[0]):
            raise DatasetError(
                f"record {number} is a {type(record).__name__}, unlike those before: tokenize "
                "preferences and instructions apart"
            )
        text = record.prompt.rstrip(" ")
        space = record.prompt[len(text) :]
        prompt = tokenizer(text)["input_ids"]
        if prompt and prompt[-1] == tokenizer.eos_token_id:
            prompt = prompt[:-1]
        if not prompt:
            raise DatasetError(f"record {number}: the prompt {record.prompt!r} has no tokens")
        if len(prompt) >= max_length:
            if drop_long:
                continue
            raise DatasetError(
                f"record {number}: the prompt has {len(prompt)} tokens, and the context of "
                f"{max_length} leaves no room for a response. Raise max_length, or give "
                "drop_long=True to leave such records out"
            )
        item = tuple(
            _joined(prompt, space + response, tokenizer, max_length, number)
            for response in _responses(record)
        )
        if len(item) > len(set(item)):
            if drop_long:
                continue
            raise DatasetError(
                f"record {number}: chosen and rejected are the same within {max_length} tokens: "
                "raise max_length, or give drop_long=True to leave such records out"
            )
        items.append(item)
    if not items:
        raise DatasetError(f"no record is left of those that fit into {max_length} tokens")
    return items


def _responses(record: Instruction | Preference) -> Sequence[str]:
    if isinstance(record, Preference):
        return record.chosen, record.rejected
    return (record.response,)


def _joined(
    prompt: list[int], response: str, tokenizer: Any, max_length: int, number: int
) -> Tokens:
    ids = tokenizer(response, add_special_tokens=False)["input_ids"]
    if not ids:
        raise DatasetError(f"record {number}: the response {response!r} has no tokens")
    whole = [*prompt, *ids, tokenizer.eos_token_id][:max_length]
    return Tokens(tuple(whole), len(prompt))


def check_vocabulary(items: Iterable[Item], size: int) -> None:
    """Refuse token ids that a model has no embedding of.

    Raises
    ------
    DatasetError
        Naming the record.
    """
    for number, item in enumerate(items, start=1):
        largest = max(max(tokens.ids) for tokens in item)
        if largest >= size:
            raise DatasetError(
                f"record {number} has the token id {largest}, and the model knows {size} tokens: "
                "the tokenizer is another model's"
            )


def check_length(items: Iterable[Item], most: int, what: str, remedy: str) -> None:
    """Refuse sequences of more tokens than there is room for; raises as above."""
    for number, item in enumerate(items, start=1):
        longest = max(len(tokens.ids) for tokens in item)
        if longest > most:
            raise DatasetError(f"record {number} has {longest} tokens, and {what} {most}: {remedy}")
