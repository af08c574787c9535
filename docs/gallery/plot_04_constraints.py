r"""
Coupled constraints and their multipliers
=========================================

The follower would answer :math:`y = 2x`, but may not exceed :math:`x` (toys of
arXiv:2406.10148):

.. math:: \min_y\; (y - 2x)^2 \quad\text{s.t.}\quad y - x \le 0, \qquad x \in [0, 3].

So :math:`y_g = x`, with the multiplier :math:`\mu_g = 2x`. The leader's objective bends this
into several valleys.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from bilevel import BLOCC, BilevelProblem, Box
from bilevel.diagnostics import lower_gap

torch.set_default_dtype(torch.float64)


def toy(frequency, ridge):
    return BilevelProblem(
        upper=lambda x, y: (
            torch.exp(2 - y) / (2 + torch.cos(frequency * x))
            + 0.5 * torch.log((4 * x - 2) ** 2 + 1)
            + ridge * x**2
        ),
        lower=lambda x, y: (y - 2 * x) ** 2,
        lower_constraints=lambda x, y: (y - x).reshape(1),
        upper_domain=Box(0.0, 3.0),
    )


toys = {"first toy": toy(4.0, 1.0), "second toy": toy(6.0, 0.0)}

# %%
# Why multipliers
# ---------------
# Moving :math:`x` moves the constraint, so the value function :math:`v(x) = (x - 2x)^2 = x^2`
# feels it:
#
# .. math:: v'(x) = \partial_x g(x, y_g) + \mu_g\, \partial_x c(x, y_g) = 4x - 2x = 2x .
#
# Without the multiplier the slope would be wrong by a factor of two. :class:`~bilevel.BLOCC`
# carries the multipliers of both responses.
x = torch.linspace(0.0, 3.0, 61)
origin = torch.tensor(0.0)
problem = toys["first toy"]
v = [
    problem.lower(point, origin) - lower_gap(problem, point, origin) for point in x
]
slope = torch.gradient(torch.tensor(v), spacing=(x,))[0]
for name, formula in {"without": 4 * x, "with": 4 * x - 2 * x}.items():
    error = (formula - slope)[1:-1].abs().max()
    print(f"{name:>7} multiplier: largest error of the slope {error:.1e}")

# %%
# All valleys
# -----------
# A converged run has found a stationary point of the penalised value, which may be a local
# minimum. Both toys are one-dimensional, so we can look: thirteen starts, each with its own
# run.
starts = torch.linspace(0.0, 3.0, 13)
grid = torch.linspace(0.0, 3.0, 400)
fig, panels = plt.subplots(1, 2, figsize=(7.6, 3.4))
for ax, (name, problem) in zip(panels, toys.items(), strict=True):
    ends = [BLOCC().solve(problem, start, start) for start in starts]
    assert all(end.converged for end in ends)
    minima = sorted(
        {(round(end.x.item(), 4), round(end.upper_value, 5)) for end in ends}
    )
    print(
        f"{name}:",
        *(f"x = {point:.4f}, f = {height:.5f};" for point, height in minima),
    )

    ax.plot(grid, problem.upper(grid, grid), color="#e07b28")
    ax.plot(
        starts, problem.upper(starts, starts), "o", markersize=4, fillstyle="none"
    )
    ax.plot(*np.transpose(minima), "o", color="#2f7ed8", markersize=7)
    for point, height in minima:
        label = f"{point:.3f}", (point, height), (0, -15)
        ax.annotate(
            *label, textcoords="offset points", ha="center", fontsize="small"
        )
    ax.set(title=name, xlabel="$x$")
    ax.margins(y=0.12)
panels[0].set_ylabel(r"$\varphi(x) = f(x, y_g(x))$")
plt.show()

# %%
# Restarts
# --------
# ``restarts`` draws further starts from the domain, with a seed, and keeps the best answer
# whose feasibility and lower gap were verified.
for name, problem in toys.items():
    solution = BLOCC().solve(
        problem, torch.tensor(3.0), torch.tensor(3.0), restarts=6
    )
    print(f"{name}: x = {solution.x:.4f}, f = {solution.upper_value:.5f}")
    print("  " + solution.notes[-1])
