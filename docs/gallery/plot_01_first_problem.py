r"""
A first problem
===============

A supplier announces a unit price :math:`p` and builds a capacity :math:`k`, at a cost of 2 a
unit. A customer then buys the quantity :math:`y` that is best for the customer, at most the
capacity:

.. math::
    \min_{p,\,k}\; \underbrace{2k - p\,y}_{f}
    \quad\text{s.t.}\quad
    y \in \argmin_{y'} \Bigl\{ \underbrace{\tfrac12 y'^2 - (10 - p)\,y'}_{g} :
    \underbrace{y' - k}_{c} \le 0 \Bigr\}.

The follower's constraint depends on the leader's decision: the levels are *coupled*. By hand,
the customer buys :math:`y = \min(10 - p,\, k)`, the supplier builds what is bought, and
:math:`(p - 2)(10 - p)` is largest at :math:`p = 6`, :math:`k = y = 4`, with a profit of 16.
"""

# %%
# The problem is its functions; the levels' variables are tensors, or trees of tensors as here.
import torch

from bilevel import BLOCC, BilevelProblem

problem = BilevelProblem(
    upper=lambda x, y: 2 * x["capacity"] - x["price"] * y,
    lower=lambda x, y: 0.5 * y**2 - (10 - x["price"]) * y,
    lower_constraints=lambda x, y: (y - x["capacity"]).reshape(1),
)
x0 = {"price": torch.tensor(3.0), "capacity": torch.tensor(1.0)}
solution = BLOCC().solve(problem, x0, torch.tensor(1.0))
print(solution)

# %%
# The first three residuals are recomputed at the end, without regard to the path that led
# there: how far :math:`y` is from solving the lower level, by how much a constraint is
# violated, and how far :math:`x` is from a stationary point. The answer itself has the
# structure of the start.
print(solution.x, solution.y)

# %%
# How it got there
# ----------------
# No parts were named, so the solver chose them for a small smooth problem: exact responses of
# the customer, SQP steps, and a penalty that grows by factors of ten, one a step. The history
# has a row a step. The gap falls as :math:`\gamma^{-2}`.
figure = solution.plot()

# %%
# Any function of the record and the state can look on as a callback. Here it collects the
# leader's decisions, which we draw over the profit that the supplier really makes, the
# customer's reaction included. The optimum lies on the ridge along which exactly what is bought
# is built.
import matplotlib.pyplot as plt
import numpy as np

decisions = [(3.0, 1.0)]


def collect(record, state):
    decisions.append((state.x["price"].item(), state.x["capacity"].item()))


BLOCC().solve(problem, x0, torch.tensor(1.0), callbacks=[collect])

price, capacity = np.meshgrid(np.linspace(2, 11, 200), np.linspace(0, 9, 200))
profit = price * np.minimum(np.maximum(10 - price, 0), capacity) - 2 * capacity

# sphinx_gallery_thumbnail_number = 2
fig, ax = plt.subplots(figsize=(6.0, 3.9))
levels = np.arange(-16, 17, 2)
filled = ax.contourf(price, capacity, profit, levels, cmap="RdBu", extend="both")
fig.colorbar(filled, label="profit", ticks=[-16, -8, 0, 8, 16])
ax.plot([2, 10], [8, 0], "--", color="0.3", linewidth=1)
ax.text(8.2, 2.1, "demand $10 - p$", color="0.2", rotation=-38, ha="center")
ax.plot(*np.transpose(decisions), "o-", color="black", markersize=4, linewidth=1)
for label, point in {"start": decisions[0], r"$\gamma = 1$": decisions[1]}.items():
    ax.annotate(label, point, (-12, 7), textcoords="offset points", color="black")
ax.plot(6, 4, "*", color="#e07b28", markersize=14)
ax.set(xlabel="price $p$", ylabel="capacity $k$")
plt.show()
