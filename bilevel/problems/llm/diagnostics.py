"""Whether the assumption of PBGD-Free holds along a run: flatness and bias on a fixed sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from bilevel.callbacks import Callback
from bilevel.diagnostics.flatness_fit import FlatnessFit, fit_flatness
from bilevel.errors import DatasetError
from bilevel.options import check_count, check_positive
from bilevel.problem import BilevelProblem
from bilevel.problems.llm.batches import TokenBatch
from bilevel.problems.llm.model import TwoLevelModel
from bilevel.problems.llm.problem import finetuning_problem

if TYPE_CHECKING:
    from bilevel.solvers.loop import Run


class ResponseDiagnostics(Callback):
    r"""Follow both responses of the head at a run's x, and compare them.

    At x the features of a fixed sample are computed once, and the head takes ``steps`` full-batch
    steps of Adam towards :math:`y_g = \arg\min g` and :math:`y_\gamma = \arg\min f/\gamma + g`, at
    several γ, from where the run has it. Cross-entropy on a small sample may have no minimiser, so
    these are approximations. The run is not touched.

    Parameters
    ----------
    model
        The model that the run trains.
    preferences, instructions
        The sample.
    penalty
        γ of the run.
    every
        Steps between measurements.
    steps, lr
        Of Adam.
    factors
        The penalties, in units of ``penalty``.
    beta
        β of DPO.

    Attributes
    ----------
    points : pandas.DataFrame
        One row a penalty: ``step``, ``penalty``; ``distance`` :math:`\|y_g - y_\gamma\|`;
        ``difference`` :math:`|f(x, y_g) - f(x, y_\gamma)|`; ``omitted``
        :math:`\gamma\|\nabla_x g(x, y_\gamma) - \nabla_x g(x, y_g)\|`, what PBGD-Free leaves out;
        ``kept`` :math:`\|\nabla_x f(x, y_\gamma)\|`, what it follows; ``cosine`` of the kept and
        the whole gradient.
    """

    def __init__(
        self,
        model: TwoLevelModel,
        preferences: Sequence[TokenBatch],
        instructions: Sequence[TokenBatch],
        penalty: float,
        *,
        every: int,
        steps: int = 50,
        lr: float = 1e-3,
        factors: Sequence[float] = (0.25, 1.0, 4.0),
        beta: float = 0.1,
    ) -> None:
        check_count("every", every)
        check_count("steps", steps)
        for name, value in (("penalty", penalty), ("lr", lr), *(("factors", f) for f in factors)):
            check_positive(name, value)
        if not (preferences and instructions):
            raise DatasetError("the sample has no batch of preferences, or none of instructions")
        self.model = model
        self.batches = (list(preferences), list(instructions))
        self.penalty = penalty
        self.every = every
        self.steps = steps
        self.lr = lr
        self.factors = tuple(factors)
        self.problem: BilevelProblem = finetuning_problem(model, beta)
        self._rows: list[dict[str, float]] = []

    @property
    def points(self) -> pd.DataFrame:
        """What was measured so far."""
        columns = ["step", "penalty", "distance", "difference", "omitted", "kept", "cosine"]
        return pd.DataFrame(self._rows, columns=columns)

    def fit(self) -> FlatnessFit:
        """The constants c, α, δ of the flatness definition (arXiv:2507.20400, Definition 1)."""
        points = self.points
        return fit_flatness(points["distance"].to_numpy(), points["difference"].to_numpy())

    def state_dict(self) -> dict[str, Any]:
        """The points, for a checkpoint."""
        return {"rows": self._rows}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take those of the run that is resumed."""
        self._rows = saved["rows"]

    def on_step(self, run: Run) -> None:
        """Measure if it is time."""
        if run.state.step == 1 or run.state.step % self.every == 0:
            self.measure(run)

    def measure(self, run: Run) -> None:
        """Add the points of the run as it is."""
        # In several processes the run's head is not the model's before the end.
        step, head = run.state.step, run.state.y
        assert isinstance(head, Tensor)
        with torch.no_grad():
            features = [[self.model.features(b) for b in batches] for batches in self.batches]
        original = self._response(features, head, 0.0)
        value, slope = self._mean(features, original, 0), self._slope(original, 1)
        for factor in self.factors:
            penalty = factor * self.penalty
            perturbed = self._response(features, head, 1.0 / penalty)
            kept = self._slope(perturbed, 0)
            omitted = penalty * (self._slope(perturbed, 1) - slope)
            whole = kept + omitted
            self._rows.append(
                {
                    "step": step,
                    "penalty": penalty,
                    "distance": float(torch.linalg.vector_norm(original - perturbed)),
                    "difference": float((value - self._mean(features, perturbed, 0)).abs()),
                    "omitted": float(omitted.norm()),
                    "kept": float(kept.norm()),
                    "cosine": float(kept @ whole / (kept.norm() * whole.norm())),
                }
            )

    def _response(self, features: list[list[Tensor]], start: Tensor, weight: float) -> Tensor:
        """The head after the steps towards argmin of weight · f + g."""
        head = start.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([head], lr=self.lr)
        for _ in range(self.steps):
            loss = self._mean(features, head, 1)
            if weight:
                loss = loss + weight * self._mean(features, head, 0)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return head.detach()

    def _mean(self, features: list[list[Tensor]], head: Tensor, level: int) -> Tensor:
        value = (self.problem.upper_value, self.problem.lower_value)[level]
        pairs = zip(features[level], self.batches[level], strict=True)
        return torch.stack([value(hidden, head, batch) for hidden, batch in pairs]).mean()

    def _slope(self, head: Tensor, level: int) -> Tensor:
        """∇ₓ of one objective at a head, as a vector."""
        value = (self.problem.upper_value, self.problem.lower_value)[level]
        leaves = list(self.model.lora.values())
        total = torch.zeros(sum(leaf.numel() for leaf in leaves), device=head.device)
        with torch.enable_grad():
            for batch in self.batches[level]:
                slopes = torch.autograd.grad(value(self.model.features(batch), head, batch), leaves)
                total += torch.cat([slope.reshape(-1) for slope in slopes])
        return total / len(self.batches[level])
