"""Endless streams of batches whose position can be saved and restored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from bilevel.errors import OptionError


class BatchStream:
    """Batches of a re-iterable loader, epoch after epoch.

    The state holds the epoch, the position in it, and the random state with which the epoch began,
    so that a restored stream goes on with the batch that would have come next.
    """

    def __init__(self, loader: Iterable[Any], name: str) -> None:
        if not hasattr(loader, "__iter__") or isinstance(loader, str | bytes):
            raise OptionError(
                f"{name} is a {type(loader).__name__}, expected a loader that yields batches"
            )
        if isinstance(loader, Iterator):
            raise OptionError(
                f"{name} is an iterator, which is used up after one pass; pass the DataLoader, a "
                "list of batches, or an object with __iter__"
            )
        self.loader = loader
        self.name = name
        self.epoch = 0
        self.position = 0
        self._random = _random_state(loader)
        self._iterator: Iterator[Any] | None = None

    def next(self, count: int = 1) -> Any:
        """The next batch, or with ``count`` > 1 the list of the next ``count`` batches."""
        if count > 1:
            return [self._one() for _ in range(count)]
        return self._one()

    def _one(self) -> Any:
        if self._iterator is None:
            self._begin_epoch()
        assert self._iterator is not None
        try:
            batch = next(self._iterator)
        except StopIteration:
            if self.position == 0:
                raise OptionError(f"{self.name} yielded no batch in a whole epoch") from None
            self.epoch += 1
            self.position = 0
            self._begin_epoch()
            return self._one()
        self.position += 1
        return batch

    def _begin_epoch(self) -> None:
        self._random = _random_state(self.loader)
        sampler = getattr(self.loader, "sampler", None)
        set_epoch = getattr(sampler, "set_epoch", None)
        if set_epoch is not None:  # DistributedSampler shuffles by epoch
            set_epoch(self.epoch)
        self._iterator = iter(self.loader)

    def state_dict(self) -> dict[str, Any]:
        """Epoch, position, and the random state at the epoch's begin."""
        return {"epoch": self.epoch, "position": self.position, "random": self._random}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go to a saved position; the global random state is left as it was found."""
        current = torch.get_rng_state()
        self.epoch = saved["epoch"]
        _set_random_state(self.loader, saved["random"])
        self._begin_epoch()
        assert self._iterator is not None
        for _ in range(saved["position"]):
            next(self._iterator)
        self.position = saved["position"]
        torch.set_rng_state(current)


def _random_state(loader: Any) -> dict[str, torch.Tensor]:
    state = {"global": torch.get_rng_state()}
    generator = getattr(loader, "generator", None)
    if isinstance(generator, torch.Generator):
        state["loader"] = generator.get_state()
    return state


def _set_random_state(loader: Any, state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["global"])
    if "loader" in state:
        loader.generator.set_state(state["loader"])
