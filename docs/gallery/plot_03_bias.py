r"""
PBGD-Free and its bias
======================

:class:`~bilevel.PBGDFree` follows the partial gradient :math:`\nabla_x f(x, y_\gamma)` alone.
It needs no original response, no second copy of :math:`y` and no inner loop. What it leaves out
of :math:`\nabla F_\gamma` is

.. math:: b(x) = \gamma\,[\,\nabla_x g(x, y_\gamma) - \nabla_x g(x, y_g)\,],

which need not vanish as :math:`\gamma` grows. Two toys with known answers (arXiv:2507.20400)
show both sides.
"""

import warnings

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import softplus

from bilevel import PBGD, BilevelProblem, PBGDFree
from bilevel.diagnostics import bias
from bilevel.errors import BiasWarning

torch.set_default_dtype(torch.float64)

# %%
# The negative toy
# ----------------
# Here :math:`y_g = x - 1`, so :math:`\varphi(x) = x^2 + 10x - 10` with its optimum at :math:`x
# = -5`. But :math:`\nabla_x f = 2x` vanishes at :math:`x = 0`, whatever :math:`\gamma`: all of
# the pull to the left goes through the lower level.
negative = BilevelProblem(
    upper=lambda x, y: 10 * y + x**2,
    lower=lambda x, y: (y - x + 1) ** 2,
)
start = torch.tensor(2.0), torch.tensor(3.0)
free = PBGDFree(penalty=10.0, upper_lr=0.05, lower_lr=0.2)
solution = free.solve(negative, *start)
print(solution)

# %%
# The run settled, and the record says that the answer is not one: the status is *biased*, and
# ``stationarity``, the norm of the full gradient :math:`\nabla F_\gamma`, is 10. The diagnostic
# says why: the omitted term is 10, and what the method followed is zero.
print(bias(negative, solution.x, solution.y, penalty=10.0))

# %%
# :class:`~bilevel.PBGD` has the full gradient. ``polish`` runs the two after another: the cheap
# method as far as it goes, then the full gradient.
for solver in (
    PBGD(),
    PBGDFree(penalty=10.0, upper_lr=0.05, lower_lr=0.2, polish=PBGD()),
):
    solution = solver.solve(negative, *start)
    print(
        f"{solution.parts['solver']:<20} x = {solution.x:.5f}   {solution.status}"
    )

# %%
# The positive toy
# ----------------
# A preference loss over a supervised loss, with one weight each. The preference loss depends on
# :math:`x` directly, and on :math:`y` only through a small ridge: close to flat in :math:`y`.
REFERENCE = -5.33958


def ridge(x, y):
    return 0.01 * (x**2 + y**2)


positive = BilevelProblem(
    upper=lambda x, y: softplus((x - REFERENCE) / 2) + ridge(x, y),
    lower=lambda x, y: 0.5 * (softplus(-(x + y) / 2) + softplus(x)) + ridge(x, y),
)
start = torch.tensor(5.0), torch.tensor(-9.9)
optimum = -6.167815
fig, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.5))


def run(name, solver, **options):
    visited = []
    solution = solver.solve(
        positive,
        *start,
        callbacks=[lambda record, state: visited.append(state.x.item())],
        **options,
    )
    gradients = solution.history["gradient_evaluations"]
    left.loglog(gradients, [abs(x - optimum) for x in visited], label=name)
    print(f"{name:<17}  x = {solution.x:.4f}  y = {solution.y:.4f}", end="  ")
    print(f"gradients {solution.gradient_evaluations:<4}  {solution.status}")
    return solution


options = {"penalty": 16.0, "upper_lr": 0.5, "lower_lr": 2.0}
with warnings.catch_warnings():
    warnings.simplefilter("ignore", BiasWarning)
    free = run("PBGDFree", PBGDFree(**options, inner_steps=2, bias_every=5))
run("PBGD", PBGD(**options, inner_steps=10), max_steps=600)
polish = PBGDFree(**options, inner_steps=2, polish=PBGD(), polish_below=0.05)
run("PBGDFree + polish", polish)

left.set(
    title="distance to the optimum", xlabel="gradients taken", ylabel="$|x - x^*|$"
)
left.legend()
measured = free.history.dropna(subset="bias")
kept = measured["bias"] / measured["bias_ratio"]
right.semilogy(measured["step"], kept, label=r"kept, $\|\nabla_x f\|$")
right.semilogy(measured["step"], measured["bias"], label=r"omitted, $\|b\|$")
right.set(title="PBGDFree: what it keeps and omits", xlabel="step")
right.legend()
plt.show()

# %%
# ``PBGDFree`` comes near first, passes by, and ends one unit away from the optimum in
# :math:`x`: the omitted term is small against what the method follows at the start, and
# dominates where it stops. ``PBGD`` at the same penalty ends at that penalty's minimiser;
# polishing with a growing penalty ends at the optimum, after a fraction of the gradients.

# %%
# When to use it
# --------------
# ``PBGDFree`` is the method for large networks whose upper objective depends on :math:`x`
# strongly and directly. Measure the bias along the run (``bias_every``), look at it before
# believing the answer, and polish where it matters. Where :math:`f` does not depend on
# :math:`x` at all, there is no direction to follow, and the library says so:
indirect = BilevelProblem(
    upper=lambda x, y: (y - 1) ** 2,
    lower=lambda x, y: (y - x) ** 2,
)
try:
    PBGDFree(upper_lr=0.1, lower_lr=0.1).solve(indirect, *start)
except ValueError as error:
    print(f"{type(error).__name__}: {error}")
