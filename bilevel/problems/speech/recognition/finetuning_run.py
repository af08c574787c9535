"""The steps of fine-tuning, and its state."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bilevel import checkpoints
from bilevel.batches import BatchStream
from bilevel.distributed import gather, mean_values, world_size
from bilevel.errors import CheckpointError, NonFiniteError
from bilevel.problems.speech.recognition.ctc import ctc_loss, frames_needed
from bilevel.problems.speech.recognition.finetuning_options import FineTuningOptions
from bilevel.problems.speech.recognition.recogniser import LabelledBatch, Recogniser
from bilevel.random_state import get_random_state, set_random_state


class FineTuningRun:
    """A run in progress."""

    def __init__(
        self,
        recogniser: Recogniser,
        batches: Iterable[LabelledBatch],
        steps: int,
        options: FineTuningOptions,
    ) -> None:
        self.recogniser = recogniser
        self.stream = BatchStream(batches, "batches")
        self.steps = steps
        self.options = options
        self.step = 0
        self.frames = 0
        self.symbols = 0
        self.losses: list[float] = []
        self.norm = math.nan
        self.rows: list[dict[str, float]] = []
        self.infeasible: dict[str, tuple[int, int]] = {}
        self.earlier = 0.0
        self.began = time.perf_counter()
        self.device = recogniser.head.weight.device
        self.encoder = [each for each in recogniser.encoder.parameters() if each.requires_grad]
        self.trained = [*recogniser.head.parameters(), *self.encoder]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(recogniser.head.parameters()), "peak": options.head_lr},
                {"params": self.encoder, "peak": options.encoder_lr},
            ],
            lr=0.0,
            weight_decay=options.weight_decay,
        )
        self.model: nn.Module | None = None

    def advance(self) -> None:
        """One step."""
        if self.model is None or self.step == self.options.frozen_steps:
            self._wrap()
        batch = self.stream.next()
        loss = self._loss(batch)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.trained, self.options.max_norm)
        self._check("the gradient's norm", float(norm), batch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * self.options.rate(self.step, self.steps)
        self.optimizer.step()
        self.norm = float(norm)
        self.step += 1

    def _wrap(self) -> None:
        """Freeze or thaw the encoder; DDP fixes what it averages when it wraps a module."""
        for parameter in self.encoder:
            parameter.requires_grad_(self.step >= self.options.frozen_steps)
        devices = None if self.device.type == "cpu" else [self.device]
        self.model = self.recogniser
        if world_size() > 1:
            self.model = DistributedDataParallel(self.recogniser, device_ids=devices)

    def thaw(self) -> None:
        """Leave the encoder trainable as it was."""
        for parameter in self.encoder:
            parameter.requires_grad_(True)

    def _loss(self, batch: LabelledBatch) -> Tensor:
        assert self.model is not None
        features = batch.features.to(self.device, non_blocking=True)
        counts = batch.frame_counts.to(self.device, non_blocking=True)
        if self.options.augment is not None:
            features = self.options.augment(features, counts)
        with torch.autocast(
            self.device.type, self.options.precision, enabled=self.options.precision is not None
        ):
            log_probs, lengths = self.model(features, counts)
        targets = [self.recogniser.vocabulary.target(each) for each in batch.utterances]
        frames = lengths.tolist()
        kept = []
        for row, (target, found) in enumerate(zip(targets, frames, strict=True)):
            if frames_needed(target) <= found:
                kept.append(row)
            else:
                self.infeasible[batch.utterances[row].id] = frames_needed(target), found
        symbols = sum(gather(sum(len(targets[row]) for row in kept)))
        total = log_probs.sum() * 0.0  # keeps a process without a feasible target in step
        if kept:
            total = ctc_loss(
                log_probs[kept], [frames[row] for row in kept], [targets[row] for row in kept]
            ).sum()
        loss: Tensor = total * (world_size() / max(symbols, 1))
        self._check("the loss", value := loss.item(), batch)
        self.losses.append(value)
        self.frames += sum(frames)
        self.symbols += symbols
        return loss

    def _check(self, name: str, value: float, batch: LabelledBatch) -> None:
        if not math.isfinite(value):
            names = ", ".join(each.id for each in batch.utterances[:3])
            raise NonFiniteError(
                f"{name} is {value} at step {self.step + 1} of fine-tuning (batch of {names}, "
                f"...): lower head_lr={self.options.head_lr:g} and encoder_lr="
                f"{self.options.encoder_lr:g}, or look for NaN in these utterances' features",
                history=pd.DataFrame(self.rows),
            )

    @property
    def seconds(self) -> float:
        """Time of the run, earlier parts of a resumed one included."""
        return self.earlier + time.perf_counter() - self.began

    def log(self) -> dict[str, float]:
        """The row of this step."""
        mean = mean_values({"loss": sum(self.losses) / len(self.losses)})
        row = {
            "step": self.step,
            **mean,
            "gradient_norm": self.norm,
            "rate": self.optimizer.param_groups[1]["lr"],
            "frames": sum(gather(self.frames)),
            "infeasible": sum(gather(len(self.infeasible))),
            "seconds": self.seconds,
        }
        self.losses.clear()
        self.rows.append(row)
        return row

    def _settings(self) -> dict[str, Any]:
        settings = {**asdict(self.options), "precision": str(self.options.precision)}
        return {
            **settings,
            "steps": self.steps,
            "symbols": list(self.recogniser.vocabulary.symbols),
        }

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        state = {
            "step": self.step,
            "frames": self.frames,
            "symbols": self.symbols,
            "losses": self.losses,
            "recogniser": self.recogniser.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "infeasible": self.infeasible,
        }
        content = {
            "state": state,
            "settings": self._settings(),
            "stream": self.stream.state_dict(),
            "rows": self.rows,
            "seconds": self.seconds,
            "random": get_random_state(),
        }
        checkpoints.save(path, content)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        content = checkpoints.load(path)
        found, expected = content.get("settings"), self._settings()
        if not isinstance(found, dict):
            raise CheckpointError(f"{path} is not a checkpoint of finetune()")
        changed = [name for name in expected if found.get(name) != expected[name]]
        if changed:
            name = changed[0]
            raise CheckpointError(
                f"{path} is of a run with {name}={found.get(name)!r}, this one has "
                f"{expected[name]!r}: resume with the same options, or begin anew"
            )
        state = content["state"]
        try:
            self.recogniser.load_state_dict(state["recogniser"])
        except RuntimeError as error:
            raise CheckpointError(f"{path} is of another model: {error}") from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.frames, self.symbols = state["step"], state["frames"], state["symbols"]
        self.losses, self.infeasible = state["losses"], state["infeasible"]
        self.rows, self.earlier = content["rows"], content["seconds"]
        self.stream.load_state_dict(content["stream"])
        set_random_state(content["random"])
