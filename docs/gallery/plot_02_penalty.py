r"""
The penalty picture
===================

What the penalty method does, on one number a level. The lower level's answer to :math:`x` is
:math:`y_g(x) = \sin 2x`, and the value function is :math:`v(x) = -\tfrac12 \sin^2 2x`:

.. math::
    f(x, y) = (y + 0.6)^2 + 0.1\,x^2, \qquad g(x, y) = \tfrac12 y^2 - y \sin 2x .

The penalised value lets the lower level deviate, at the price :math:`\gamma` for each unit that
it loses by it:

.. math:: F_\gamma(x) = \min_y\; f(x, y) + \gamma\,[\,g(x, y) - v(x)\,] .
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from bilevel import PBGD, BilevelProblem
from bilevel.diagnostics import check_hypergradient, hypergradient, penalty_path

torch.set_default_dtype(torch.float64)

problem = BilevelProblem(
    upper=lambda x, y: (y + 0.6) ** 2 + 0.1 * x**2,
    lower=lambda x, y: 0.5 * y**2 - y * torch.sin(2 * x),
)

# %%
# Two responses
# -------------
# Everything is computed from two answers of the lower level: the original response :math:`y_g`,
# which minimises :math:`g`, and the perturbed response :math:`y_\gamma`, which minimises
# :math:`f/\gamma + g`. Here both have closed forms. As :math:`\gamma` grows, :math:`y_\gamma`
# approaches :math:`y_g`, and :math:`F_\gamma` approaches the objective :math:`\varphi(x) = f(x,
# y_g(x))` from below.
x = np.linspace(-2.2, 2.2, 400)
y_g = np.sin(2 * x)
v = -0.5 * y_g**2


def f(y):
    return (y + 0.6) ** 2 + 0.1 * x**2


fig, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.5))
for penalty, shade in zip([1, 4, 16, 64], [0.35, 0.5, 0.65, 0.85], strict=True):
    y_gamma = (y_g - 1.2 / penalty) / (1 + 2 / penalty)
    gap = 0.5 * y_gamma**2 - y_gamma * y_g - v
    style = {
        "color": plt.get_cmap("Blues")(shade),
        "label": rf"$\gamma = {penalty}$",
    }
    left.plot(x, y_gamma, **style)
    right.plot(x, f(y_gamma) + penalty * gap, **style)
left.plot(x, y_g, color="#e07b28", label=r"$y_g$ and $\varphi$")
right.plot(x, f(y_g), color="#e07b28")
left.set(title=r"responses $y_g$ and $y_\gamma$", xlabel="$x$")
right.set(title=r"objectives $\varphi$ and $F_\gamma$", xlabel="$x$")
fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=5)
plt.show()

# %%
# One gradient, two evaluations
# -----------------------------
# :math:`v` needs no differentiation of the response. By the envelope theorem its gradient is
# the partial one, :math:`v'(x) = \partial_x g(x, y_g)`, and the same holds for
# :math:`F_\gamma`:
#
# .. math::
#     F_\gamma'(x) = \partial_x f(x, y_\gamma)
#     + \gamma\,[\,\partial_x g(x, y_\gamma) - \partial_x g(x, y_g)\,] .
#
# First-order gradients at two points, no second derivatives, no linear system. The price is an
# error that falls as :math:`1/\gamma`, measured here against implicit differentiation with
# exact second derivatives:
check = check_hypergradient(problem, torch.tensor(0.4), torch.tensor(0.0))
print(check)

# %%
penalties = np.geomspace(1, 1e4, 13)
fig, ax = plt.subplots(figsize=(5.4, 3.4))
for point in (-1.0, 0.4, 1.7):
    at = torch.tensor(point)
    exact = hypergradient(problem, at, torch.tensor(0.0))
    errors = [
        abs(
            hypergradient(problem, at, torch.tensor(0.0), "penalty", penalty)
            - exact
        )
        for penalty in penalties
    ]
    ax.loglog(penalties, errors, "o-", markersize=4, label=f"$x = {point}$")
ax.loglog(penalties, 1 / penalties, ":", color="0.5", label=r"$\propto 1/\gamma$")
ax.set(xlabel=r"penalty $\gamma$", ylabel=r"$|F_\gamma'(x) - \varphi'(x)|$")
ax.legend()
plt.show()

# %%
# How large a penalty?
# --------------------
# Large enough for the accuracy that is asked for, and no larger: the objective's curvature
# across :math:`y = y_g(x)` grows with :math:`\gamma`, and so does the rounding error of the
# difference above. Following the solutions along growing penalties shows where the answer
# settles.
path = penalty_path(
    problem,
    torch.tensor(1.0),
    torch.tensor(0.0),
    penalties=[1, 10, 100, 1e3, 1e4],
    solver=PBGD(),
)
columns = ["penalty", "upper_value", "lower_gap", "penalised_value", "distance"]
print(path.table[columns].to_string(index=False))
