r"""
Choosing responses and outer steps
==================================

One problem, solved by every combination that fits it. The lower level is a strongly convex
quadratic program in :math:`y \ge 0`, the upper level a strongly convex quadratic; the optimum
is known because the problem is built around it.
"""

import time

import matplotlib.pyplot as plt
import pandas as pd
import torch

from bilevel import (
    BLOCC,
    PBGD,
    SQP,
    BilevelProblem,
    Exact,
    FirstOrder,
    GradientDescent,
    MaxMin,
    NonNegative,
    QuasiNewton,
)
from bilevel.schedules import Geometric

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)

# %%
# The problem
# -----------
# With :math:`g = \tfrac12 y^\top H y - y^\top (Bx + d)` and the entries :math:`I` of :math:`y`
# inside, :math:`\mathrm{d}y_I / \mathrm{d}x = H_{II}^{-1} B_I`. Choosing :math:`d` such that
# :math:`y^*` solves the lower level at :math:`x^*`, and the target :math:`a = x^* +
# (\mathrm{d}y/\mathrm{d}x)^\top (y^* - b)`, makes :math:`(x^*, y^*)` the optimum of :math:`f =
# \tfrac12\|x - a\|^2 + \tfrac12\|y - b\|^2`.
n, m = 8, 12
root = torch.randn(m, m)
H = root @ root.T / m + torch.eye(m)
B, b = torch.randn(m, n), torch.randn(m)
x_star = torch.randn(n)
inside = torch.arange(m) < 8
y_star = torch.where(inside, torch.rand(m) + 0.5, 0.0)
pressure = torch.where(inside, 0.0, torch.rand(m) + 0.5)
d = H @ y_star - B @ x_star - pressure
jacobian = torch.zeros(m, n)
jacobian[inside] = torch.linalg.solve(H[inside][:, inside], B[inside])
a = x_star + jacobian.T @ (y_star - b)

objectives = {
    "upper": lambda x, y: (
        0.5 * (x - a).square().sum() + 0.5 * (y - b).square().sum()
    ),
    "lower": lambda x, y: 0.5 * y @ H @ y - y @ (B @ x + d),
}

# %%
# :math:`y \ge 0` can be stated twice: as a domain, onto which first-order responses project, or
# as constraints, which get multipliers.
with_domain = BilevelProblem(**objectives, lower_domain=NonNegative())
with_constraints = BilevelProblem(**objectives, lower_constraints=lambda x, y: -y)

# %%
# The solvers
# -----------
# Exact responses allow steps that use them to the full; approximate ones go with a first-order
# step. All follow the penalty to the same last value.
last = 1e4
ramp = Geometric(1.0, last, steps=150)
stages = Geometric(1.0, last, steps=4)
step = FirstOrder(lr=0.1)
solvers = {
    "SQP, Exact": PBGD(penalty=stages, response=Exact(), outer=SQP()),
    "QuasiNewton, Exact": PBGD(penalty=last, response=Exact(), outer=QuasiNewton()),
    "FirstOrder, Exact": PBGD(penalty=ramp, response=Exact(), outer=step),
    "FirstOrder, GradientDescent(10)": PBGD(
        penalty=ramp, response=GradientDescent(steps=10, lr=0.2), outer=step
    ),
    "FirstOrder, GradientDescent(2)": PBGD(
        penalty=ramp, response=GradientDescent(steps=2, lr=0.2), outer=step
    ),
    "FirstOrder, MaxMin(10)": BLOCC(
        penalty=ramp, response=MaxMin(steps=10, lr=0.2, dual_lr=0.5), outer=step
    ),
}
rows, traces = [], {}
for name, solver in solvers.items():
    problem = with_constraints if isinstance(solver, BLOCC) else with_domain
    trace = []

    def follow(record, state, trace=trace):
        distance = (state.x - x_star).norm().item()
        trace.append((record["gradient_evaluations"], distance))

    began = time.perf_counter()
    solution = solver.solve(
        problem, torch.zeros(n), torch.zeros(m), max_steps=200, callbacks=[follow]
    )
    traces[name] = trace
    rows.append(
        {
            "outer step, response": name,
            "error in x": f"{(solution.x - x_star).norm():.1e}",
            "lower gap": f"{solution.lower_gap:.0e}",
            "steps": solution.steps,
            "gradients": solution.gradient_evaluations,
            "seconds": f"{time.perf_counter() - began:.2f}",
            "status": str(solution.status),
        }
    )

# %%
# The table
# ---------
# The error that is left is that of the penalty, the same for all that followed it. Two gradient
# steps a response are too few once the penalty is large. An iteration of an exact solve counts as
# one gradient, though it uses second derivatives as well.
pd.DataFrame(rows).set_index("outer step, response")

# %%
fig, ax = plt.subplots(figsize=(6.8, 4.4))
for name, trace in traces.items():
    marker = "o" if len(trace) < 15 else None
    ax.loglog(*zip(*trace, strict=True), marker=marker, markersize=4, label=name)
ax.set(xlabel="gradients taken", ylabel=r"$\|x - x^*\|$")
fig.legend(loc="outside lower center", ncols=2, fontsize="small")
plt.show()
