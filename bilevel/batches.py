"""Endless streams of batches whose position can be saved and restored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from bilevel.errors import CheckpointError, OptionError
from bilevel.random_state import get_random_state, set_random_state

_END = object()


class BatchStream:
    """Batches of a re-iterable loader, epoch after epoch.

    The state holds the epoch, the position in it, and the random state with which the epoch began,
    so that a restored stream goes on with the batch that would have come next. A loader, or its
    sampler, with a method ``set_epoch(epoch)`` is told the epoch before each pass. A loader with a
    method ``skip(count)``, after which its next pass begins ``count`` batches in, is spared making
    those that were drawn before.

    Attributes
    ----------
    last
        the batch drawn last, ``None`` before the first.
    """

    def __init__(self, loader: Iterable[Any], name: str) -> None:
        if not hasattr(loader, "__iter__") or isinstance(loader, str | bytes | Mapping):
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
        self.last: Any = None
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
        if self._advance():
            return self.last
        if self.position == 0:
            raise OptionError(f"{self.name} yielded no batch in a whole epoch")
        self.epoch += 1
        self.position = 0
        self._iterator = None
        return self._one()

    def _advance(self) -> bool:
        """Draw a batch of this epoch, if there is another."""
        assert self._iterator is not None
        batch = next(self._iterator, _END)
        if batch is _END:
            return False
        self.last = batch
        self.position += 1
        return True

    def _begin_epoch(self, skipped: int = 0) -> None:
        self._random = _random_state(self.loader)
        for owner in (self.loader, getattr(self.loader, "sampler", None)):
            set_epoch = getattr(owner, "set_epoch", None)
            if set_epoch is not None:  # DistributedSampler shuffles by epoch
                set_epoch(self.epoch)
        if skipped:
            self.loader.skip(skipped)  # type: ignore[attr-defined]
        self._iterator = iter(self.loader)
        self.position = skipped

    def state_dict(self) -> dict[str, Any]:
        """Epoch, position, and the random states at the epoch's begin and now."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "begin": self._random,
            "generators": [generator.get_state() for generator in _generators(self.loader)],
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go to a saved position; the global random states are left as they were found.

        Raises
        ------
        CheckpointError
            the loader has other generators, or fewer batches than had been drawn from it.
        """
        found = get_random_state()
        self.epoch, self.position = saved["epoch"], 0
        if saved["position"] > 0:
            if saved["begin"] is not None:
                set_random_state(saved["begin"]["global"])
                self._set_generators(saved["begin"]["generators"])
            self._go_to(saved["position"])
        self._set_generators(saved["generators"])
        set_random_state(found)

    def _go_to(self, count: int) -> None:
        # All but the last, on which a finished run is judged, need not be made.
        self._begin_epoch(skipped=count - 1 if hasattr(self.loader, "skip") else 0)
        while self.position < count:
            if not self._advance():
                raise CheckpointError(
                    f"the saved run had drawn {count} batches of an epoch, and {self.name} ends "
                    f"after {self.position}: resume with the loader of that run"
                )

    def _set_generators(self, states: list[torch.Tensor]) -> None:
        generators = _generators(self.loader)
        if len(generators) != len(states):
            raise CheckpointError(
                f"the saved run's {self.name} had {len(states)} random generators of its own, and "
                f"this loader has {len(generators)}: resume with the loader of that run"
            )
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _random_state(loader: Any) -> dict[str, Any] | None:
    """The states that an epoch's order may depend on; a list's depends on none."""
    if isinstance(loader, list | tuple):
        return None
    return {
        "global": get_random_state(),
        "generators": [generator.get_state() for generator in _generators(loader)],
    }


def _generators(loader: Any) -> list[torch.Generator]:
    """The loader's own generators: its ``generator``, and those of its samplers."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), getattr(batch_sampler, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in (*owners, batch_sampler)]
    distinct = {id(each): each for each in found if isinstance(each, torch.Generator)}
    return list(distinct.values())
