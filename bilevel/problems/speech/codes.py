"""Whether the labels are alive: statistics of the codes in use, and a guard against collapse."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bilevel.callbacks import Callback, Record
from bilevel.distributed import mean_values, world_size
from bilevel.errors import BilevelError, OptionError
from bilevel.options import check_count, check_positive
from bilevel.problems.speech.labels import Labels

if TYPE_CHECKING:
    from bilevel.solvers.loop import Run


#: Steps before which the labels of a new encoder are not judged.
_EARLIEST = 25


class CollapseWarning(UserWarning):
    """The enhanced labels have come down to a few codes, or to noise."""


class CollapseError(BilevelError, RuntimeError):
    """The same, where a run was told to stop for it."""


class Mean:
    """A running mean that stays on the device until it is read."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def add(self, value: Tensor) -> None:
        """Take one more value in."""
        self.total = self.total + value.detach()
        self.count += 1

    def read(self) -> float:
        """The mean, and begin anew; NaN of nothing."""
        mean = float(self.total) / self.count if self.count else float("nan")
        self.total, self.count = 0.0, 0
        return mean

    def state(self) -> list[float]:
        """The total and the count."""
        return [float(self.total), self.count]


class CodeStatistics:
    """Statistics of the labels of training batches, gathered without waiting for the device.

    Attributes
    ----------
    anchor_perplexity, enhanced_perplexity
        exp of the entropy of a batch's codes, mean over batches and codebooks: how many codes
        are in use, in effect.
    agreement
        share of frames with the same enhanced and anchor label.
    nearest
        share of frames whose enhanced label is the nearest code, so not the noise's choice.
    gradient_ratio
        norm of F's gradient through the labels over the norm of all the rest, at layer k.
    frames
        encoder frames that this process has seen, masked or not.
    """

    def __init__(self, codes: int) -> None:
        self.codes = codes
        self.frames = 0
        self.anchor_perplexity = Mean()
        self.enhanced_perplexity = Mean()
        self.agreement = Mean()
        self.nearest = Mean()
        self.gradient_ratio = Mean()

    @torch.no_grad()
    def add(self, anchor: Tensor, enhanced: Labels | None = None) -> None:
        """Take in the labels [N, codebooks] of one batch."""
        self.anchor_perplexity.add(perplexity(anchor, self.codes))
        if enhanced is not None:
            self.enhanced_perplexity.add(perplexity(enhanced.codes, self.codes))
            self.agreement.add((enhanced.codes == anchor).float().mean())
            self.nearest.add((enhanced.codes == enhanced.nearest).float().mean())

    def read(self) -> dict[str, float]:
        """The means and frames since the last reading, by name; means of nothing are left out."""
        named = {name: mean for name, mean in vars(self).items() if isinstance(mean, Mean)}
        found = {name: mean.read() for name, mean in named.items() if mean.count}
        found["frames"], self.frames = float(self.frames), 0
        return found

    def state_dict(self) -> dict[str, Any]:
        """What was gathered since the last reading."""
        means = {name: mean.state() for name, mean in vars(self).items() if isinstance(mean, Mean)}
        return {"frames": self.frames, "means": means}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.frames = saved["frames"]
        for name, (total, count) in saved["means"].items():
            mean = getattr(self, name)
            mean.total, mean.count = total, count


def perplexity(codes: Tensor, size: int) -> Tensor:
    """exp of the entropy of codes [N, codebooks] below ``size``, mean over the codebooks."""
    counts = torch.zeros(codes.shape[1], size, device=codes.device)
    counts.scatter_add_(1, codes.T, torch.ones_like(codes.T, dtype=counts.dtype))
    shares = counts / len(codes)
    return torch.exp(torch.special.entr(shares).sum(dim=1)).mean()


class CodeMonitor(Callback):
    """Add the codes' statistics to the history, and watch for collapse.

    A constant enhanced label is a global minimum of F, and nothing in G forbids it. Averaged over
    ``window`` steps the perplexity of healthy runs stayed above a quarter of the anchor's, from
    step 25 on; shorter runs are not judged.

    Parameters
    ----------
    statistics
        What a :class:`PretrainingLosses` gathers.
    least_ratio
        Enhanced perplexity over the anchor's, below which the labels count as collapsed.
    most_gradient_ratio
        F's gradient through its labels over the rest, above which the optimiser sees little else.
    window
        Steps that the two are averaged over, or all so far.
    stop
        Whether to raise :class:`CollapseError`, and not only to warn, when the labels collapse.
    """

    def __init__(
        self,
        statistics: CodeStatistics,
        *,
        least_ratio: float = 0.2,
        most_gradient_ratio: float = 10.0,
        window: int = 250,
        stop: bool = False,
    ) -> None:
        if not 0 < least_ratio < 1:
            raise OptionError(f"least_ratio={least_ratio}, expected a number between 0 and 1")
        check_positive("most_gradient_ratio", most_gradient_ratio)
        check_count("window", window)
        self.statistics = statistics
        self.least_ratio = least_ratio
        self.most_gradient_ratio = most_gradient_ratio
        self.window = window
        self.stop = stop
        self._warned: set[str] = set()

    def on_start(self, run: Run) -> None:
        """Begin with empty statistics; a resumed run brings its own."""
        if run.state.step == 0:
            self.statistics.read()
        self._warned.clear()

    def state_dict(self) -> dict[str, Any]:
        """The statistics since the last record."""
        return self.statistics.state_dict()

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take them back."""
        self.statistics.load_state_dict(saved)

    def on_log(self, run: Run, record: Record) -> bool | None:
        """Complete the record and judge the last ``window`` steps."""
        found = mean_values(self.statistics.read())
        before = run.records[-2]["frames"] if len(run.records) > 1 else 0.0
        record.update(found, frames=before + world_size() * found["frames"])
        recent = [each for each in run.records if each["step"] > record["step"] - self.window]
        if record["step"] < min(self.window, _EARLIEST) or "enhanced_perplexity" not in record:
            return None
        ratio = _mean(recent, "enhanced_perplexity") / _mean(recent, "anchor_perplexity")
        steps = min(self.window, int(record["step"]))
        if ratio < self.least_ratio:
            self._report(
                "collapse",
                f"the enhanced labels have collapsed by step {record['step']}: their perplexity is "
                f"{ratio:.3f} of the anchor's over {steps} steps. Use "
                "target_gradient='detached' and normalisation='shrink', or a larger penalty",
                self.stop,
            )
        share = _mean(recent, "gradient_ratio") if "gradient_ratio" in record else 0.0
        if share > self.most_gradient_ratio:
            self._report(
                "gradient",
                f"at step {record['step']} the gradient of F through its labels is {share:.3g} "
                "times all the rest at layer k, whatever the penalty says: use "
                "target_gradient='capped' or 'detached'",
                stop=False,
            )
        return None

    def _report(self, kind: str, text: str, stop: bool) -> None:
        if stop:
            raise CollapseError(text)
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(text, CollapseWarning, stacklevel=2)


def _mean(records: list[Record], name: str) -> float:
    values = [record[name] for record in records if name in record]
    return sum(values) / len(values)
