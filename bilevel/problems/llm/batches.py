"""Batches of token sequences, and a loader over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel.distributed import rank, world_size
from bilevel.errors import DatasetError
from bilevel.options import check_count
from bilevel.problems.llm.tokens import Item, Tokens, check_length
from bilevel.transfer import send


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """S sequences of a prompt and a response: each a row padded on the right, or packed.

    Of B preferences S = 2B: the chosen responses, then the rejected ones.

    Attributes
    ----------
    ids
        [R, T] int64, R = S rows, or fewer of them if sequences are packed.
    mask
        [R, T] int64, 1 where there is a token.
    positions
        [N] int64, the places in the flattened [R · T] hidden states that predict the responses'
        tokens, one response after the other.
    targets
        [N] int64, those tokens.
    lengths
        [S] int64, tokens of each response.
    count
        Mean number of response tokens over the batches that make a step together, micro-batches and
        those of other processes; N of a single one.
    reference
        [S] log-probabilities of the responses under the reference model, if they are known.
    position_ids
        [R, T] int64, of packed sequences the place of each token in its own; elsewhere 0.
    """

    ids: Tensor
    mask: Tensor
    positions: Tensor
    targets: Tensor
    lengths: Tensor
    count: float
    reference: Tensor | None = None
    position_ids: Tensor | None = None

    @classmethod
    def of(
        cls, sequences: Sequence[Tokens], pad: int = 0, row_length: int | None = None
    ) -> TokenBatch:
        """Pad sequences to the longest, or pack them into rows of at most ``row_length`` tokens.

        Raises
        ------
        DatasetError
            A sequence longer than a row.
        """
        sizes = [len(each.ids) for each in sequences]
        places = [(row, 0) for row in range(len(sizes))]
        if row_length is not None:
            if max(sizes) > row_length:
                raise DatasetError(
                    f"a sequence of {max(sizes)} tokens does not fit into a row of {row_length}: "
                    "raise row_length"
                )
            places = first_fit(sizes, row_length)
        width = max(column + size for size, (_, column) in zip(sizes, places, strict=True))
        ids = torch.full((1 + max(row for row, _ in places), width), pad)
        mask, position_ids = torch.zeros_like(ids), torch.zeros_like(ids)
        positions = []
        for each, size, (row, column) in zip(sequences, sizes, places, strict=True):
            part = slice(column, column + size)
            ids[row, part] = torch.tensor(each.ids)
            mask[row, part] = 1
            position_ids[row, part] = torch.arange(size)
            begin = row * width + column + each.prompt_length - 1
            positions.append(torch.arange(begin, begin + each.response_length))
        where = torch.cat(positions)
        lengths = torch.tensor([each.response_length for each in sequences])
        return cls(
            ids, mask, where, ids.reshape(-1)[where + 1], lengths, float(len(where)),
            position_ids=None if row_length is None else position_ids,
        )  # fmt: skip

    def to(self, device: torch.device | str) -> TokenBatch:
        """The same batch on another device."""
        moved: dict[str, Any] = {
            name: send(value, device)
            for name, value in self.__dict__.items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def first_fit(sizes: Sequence[int], row_length: int) -> list[tuple[int, int]]:
    """Row and first column of each sequence: the longest first, in the first row with room."""
    used: list[int] = []
    places = [(0, 0)] * len(sizes)
    for each in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        fitting = (row for row, taken in enumerate(used) if taken + sizes[each] <= row_length)
        row = next(fitting, len(used))
        if row == len(used):
            used.append(0)
        places[each] = (row, used[row])
        used[row] += sizes[each]
    return places


class TokenLoader:
    """Batches of ``batch_size`` records in random order, epoch after epoch.

    The order depends on the seed and the epoch alone. Each of several processes gets its own
    ``batch_size`` records of a step; without a seed it gets all of them. What is left over at the
    end of an epoch and makes no whole step is left out.

    Parameters
    ----------
    items
        What :func:`~bilevel.problems.llm.tokenize` gave.
    batch_size
        Records a batch.
    seed
        Of the order; in the order given, and with what is left over at the end, if ``None``.
    reference
        [records, 2] log-probabilities of the chosen and the rejected responses, see
        :func:`~bilevel.problems.llm.reference_log_probabilities`.
    device
        Where the batches are to be.
    accumulate
        Batches of a step, as many as the solver's option of that name says: the loss of a step is
        then the mean over all of its tokens, however long the responses of each batch are.
    row_length
        Pack a batch's sequences end to end into rows of at most so many tokens, in the place of a
        row each that is padded to the longest. They do not see one another, so losses and gradients
        are the same; see :meth:`TwoLevelModel.check_packing`.

    Raises
    ------
    DatasetError
        Fewer records than a step takes; a sequence longer than a row.
    """

    def __init__(
        self,
        items: Sequence[Item],
        batch_size: int,
        *,
        seed: int | None = None,
        reference: Tensor | None = None,
        device: torch.device | str = "cpu",
        accumulate: int = 1,
        row_length: int | None = None,
    ) -> None:
        check_count("batch_size", batch_size)
        check_count("accumulate", accumulate)
        if seed is not None:
            check_count("seed", seed, least=0)
        self.rank, self.world = (0, 1) if seed is None else (rank(), world_size())
        step = batch_size * self.world * accumulate
        if not items or (seed is not None and len(items) < step):
            raise DatasetError(
                f"{len(items)} records do not make a step of {step}: give more records, or smaller "
                "or fewer batches"
            )
        if reference is not None and reference.shape != (len(items), len(items[0])):
            raise DatasetError(
                f"reference has the shape {tuple(reference.shape)}, expected one number a response:"
                f" {(len(items), len(items[0]))}"
            )
        self.items = items
        self._tokens = np.array([sum(each.response_length for each in item) for item in items])
        self.batch_size = batch_size
        self.seed = seed
        self.reference = reference
        self.device = device
        self.accumulate = accumulate
        self.row_length = row_length
        self.epoch = 0
        self._first = 0
        if row_length is not None:
            check_count("row_length", row_length)
            check_length(items, row_length, "a row has", "raise row_length")

    def __len__(self) -> int:
        batch = self.batch_size * self.world
        if self.seed is None:
            return -(-len(self.items) // batch)
        return len(self.items) // (batch * self.accumulate) * self.accumulate

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, on which its order depends."""
        self.epoch = epoch

    def skip(self, count: int) -> None:
        """Begin the next pass ``count`` batches in."""
        self._first = count

    def __iter__(self) -> Iterator[TokenBatch]:
        first, self._first = self._first, 0
        order = np.arange(len(self.items))
        if self.seed is not None:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(order)
        size = self.batch_size * self.world
        for number in range(first, len(self)):
            batch = self._batch(order[number * size : (number + 1) * size][self.rank :: self.world])
            if self.seed is not None:
                begin = number // self.accumulate * self.accumulate * size
                total = self._tokens[order[begin : begin + self.accumulate * size]].sum()
                batch = replace(batch, count=float(total) / (self.accumulate * self.world))
            yield batch.to(self.device)

    def _batch(self, own: Any) -> TokenBatch:
        batch = TokenBatch.of(self._sequences(own), row_length=self.row_length)
        if self.reference is not None:
            batch = replace(batch, reference=self.reference[own].T.reshape(-1))
        return batch

    def _sequences(self, chosen: Any) -> list[Tokens]:
        return [self.items[i][k] for k in range(len(self.items[0])) for i in chosen]
