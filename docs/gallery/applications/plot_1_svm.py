r"""
A support vector machine's error bounds
=======================================

The leader sets a bound :math:`c_i` on the margin violation of every training example; the
follower answers with the flattest hyperplane :math:`z = (w, b)` that keeps the bounds; the leader
is judged on validation data:

.. math::
    \min_{c \ge c_{\min}} \; f(c, z) &= \sum_{i \in \mathrm{val}} e^{1 - t_i (w^\top a_i + b)}
        + \|c\|_2 \\
    \text{s.t.}\quad z &\in \argmin_{w, b} \; \tfrac12 \|w\|^2
        \quad\text{subject to}\quad 1 - c_i - t_i (w^\top a_i + b) \le 0
        \quad (i \in \mathrm{train}),

with examples :math:`a_i` and labels :math:`t_i = \pm 1`. The constraints contain the upper
variable: this is the program on which BLOCC was published (`arXiv:2406.10148
<https://arxiv.org/abs/2406.10148>`_). The page reproduces the experiment, solves the
program to its global optimum, and says what neither tells by itself: this is not a way to choose
a classifier. That is on :ref:`the next page
<sphx_glr_auto_examples_applications_plot_2_bilevel_svc.py>`.
"""

# %%
# The data
# --------
# Breast cancer, bundled with scikit-learn: benign or malignant, by two measurements of cell nuclei,
# so that everything can be drawn.
import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.svm import LinearSVC

from bilevel import BLOCC, BilevelProblem, Box, DifferenceOfConvex
from bilevel.datasets import Split, load_svm_dataset, split
from bilevel.problems.svm import (
    Evaluator,
    relaxed_optimum,
    signed_rows,
    svm_problem,
    svm_program,
)
from bilevel.schedules import Geometric

torch.set_default_dtype(torch.float64)
chosen = ("mean texture", "mean concave points")
data = load_svm_dataset("breast_cancer")
columns = [data.feature_names.index(name) for name in chosen]
data = dataclasses.replace(
    data, features=data.features[:, columns], feature_names=chosen
)
parts = split(data, seed=0, train=300, validation=100)
mean, scale = parts.train.features.mean(0), parts.train.features.std(0)
train, validation, test = Split(
    *(
        dataclasses.replace(part, features=(part.features - mean) / scale)
        for part in parts
    )
)
print({name: len(part.labels) for name, part in parts._asdict().items()})

# %%
# The problem
# -----------
# With a row :math:`t_i (a_i, 1)` for every example it takes four functions.
train_rows, validation_rows = (
    torch.from_numpy(signed_rows(part.features, part.labels))
    for part in (train, validation)
)
in_short = BilevelProblem(
    upper=lambda c, z: (1 - validation_rows @ z).exp().sum() + c.norm(),
    lower=lambda c, z: 0.5 * z[:-1].square().sum(),
    lower_constraints=lambda c, z: 1 - c - train_rows @ z,
    upper_domain=Box(1e-4, None),
)

# %%
# :func:`~bilevel.problems.svm.svm_problem` is the same with an exact response of its own, an
# active-set and interior-point method for this lower level, which pays with more features and
# rows.
problem = svm_problem(train, validation)
c0 = torch.from_numpy(np.random.RandomState(100).uniform(1.0, 5.0, 300))
z0 = torch.zeros(3)
for each in (in_short, problem):
    few = BLOCC(penalty=12.0, upper_lr=0.01).solve(each, c0, z0, max_steps=3)
    print(f"{few.parts['response']:<18} f = {few.upper_value:.9f}")

# %%
# As published
# ------------
# Penalty 12, 80 gradient steps of length 0.01 from random bounds. The steps hardly move
# :math:`c`: a unit step along :math:`c / \|c\|` is short beside :math:`\|c\| \approx 55`.


def solve(solver, max_steps):
    """The solution, and every c on the way with its penalty."""
    visited = [(c0.numpy(), 12.0)]

    def follow(record, state):
        visited.append((state.x.numpy().copy(), float(record["penalty"])))

    solution = solver.solve(
        problem, c0, z0, max_steps=max_steps, log_every=1, callbacks=[follow]
    )
    return solution, visited


published, published_path = solve(BLOCC(penalty=12.0, upper_lr=0.01), max_steps=80)
print(published)

# %%
# Two answers to one question
# ---------------------------
# ``solution.y`` is the perturbed response: the hyperplane that minimises :math:`f / \gamma + g`,
# which has seen the validation data. The follower itself gives the exact response, without regard
# to them, and the two have little in common:
program = svm_program(train, validation)
test_rows = signed_rows(test.features, test.labels)
names = {
    "validation_loss": "validation loss",
    "validation_accuracy": "validation accuracy",
    "test_accuracy": "test accuracy",
    "upper_value": "f(c, z)",
    "lower_gap": "lower gap",
}


def judged(path):
    """Metrics of both responses to the last c of a path."""
    found = Evaluator(program, test_rows)(*path[-1])
    rows = {name: dataclasses.asdict(each) for name, each in found.items()}
    return pd.DataFrame(rows).T[list(names)].rename(columns=names).round(4)


judged(published_path)

# %%
# Where every :math:`c_i \ge 1`, the hyperplane :math:`w = 0` keeps all bounds, and none is
# flatter: the exact response sees no feature, and calls every example the same. It is the
# penalised response, from which the published accuracies were read off, that classifies: there
# the upper objective trains it, on the validation data. A small :math:`\gamma` leaves a large
# lower gap, and a bilevel solution is worth what its exact response is worth.
#
# To the global optimum
# ---------------------
# The functions are jointly convex except for :math:`-\gamma v`. A difference-of-convex step
# linearises only that, and solves the rest exactly. A falling penalty leads to the global
# optimum, for which there is a certificate. Let the leader choose :math:`z` as well: a convex
# problem, whose optimum :math:`f^*` bounds that of the bilevel problem from below. If at its
# solution the bounds leave the follower no choice but :math:`z`, which a linear program decides,
# the two are equal.
falling = Geometric(12.0, 12.0 / 3**12, steps=12)
optimal, optimal_path = solve(
    BLOCC(penalty=falling, outer=DifferenceOfConvex()), max_steps=25
)
bound = relaxed_optimum(program)
print(f"f* = {bound.value:.4f}, certified: {bound.is_bilevel_optimum}")
print(f"f  = {optimal.upper_value:.4f} in {optimal.steps} steps, {optimal.status}")

# %%
# Now the follower's own answer is the one that was planned for:
judged(optimal_path)

# %%
fig, ax = plt.subplots(figsize=(6.8, 3.4))
paths = {
    "BLOCC, as published": published_path,
    "BLOCC, difference-of-convex": optimal_path,
}
for colour, (name, path) in zip(("C0", "C2"), paths.items(), strict=True):
    evaluate = Evaluator(program, test_rows)
    values = [
        {kind: each.upper_value for kind, each in evaluate(*point).items()}
        for point in path
    ]
    for kind, style in {"exact": "-", "penalised": ":"}.items():
        label = f"{name}, {kind} response"
        ax.plot([v[kind] for v in values], style, color=colour, label=label)
ax.axhline(bound.value, color="C1", linewidth=1, label="$f^*$")
ax.set(xlabel="outer step", ylabel="$f(c, z)$", ylim=(0, None))
fig.legend(loc="outside lower center", ncols=2, fontsize="small")
plt.show()

# %%
# What the leader does
# --------------------
# At the optimum the bounds are zero but for the examples on the wrong side or inside the margin,
# whose bounds are exactly their violations (drawn as the size of a point). The follower is left a
# single hyperplane.
fig, panels = plt.subplots(1, 2, figsize=(7.6, 3.8), sharex=True, sharey=True)
answers = {
    "as published": (published_path[-1][0], published.y.tolist()),
    "optimal": (optimal_path[-1][0], optimal.y.tolist()),
}
line = np.array([-2.5, 4.0])
for ax, (name, (c, (w1, w2, b))) in zip(panels, answers.items(), strict=True):
    for label, colour in {1: "C0", -1: "C1"}.items():
        rows = train.labels == label
        ax.scatter(
            *train.features[rows].T, s=4 + 14 * c[rows], color=colour, alpha=0.45
        )
    for margin, style in {0: "-", 1: ":", -1: ":"}.items():
        ax.plot(
            line, (margin - b - w1 * line) / w2, style, color="0.5", linewidth=1.2
        )
    ax.set(title=name, xlabel=chosen[0], ylim=(-2, 4.5))
panels[0].set_ylabel(chosen[1])
handles = [
    panels[0].scatter([], [], color="C0", label="benign"),
    panels[0].scatter([], [], color="C1", label="malignant"),
    panels[0].plot([], [], color="0.5", label="hyperplane")[0],
    panels[0].plot([], [], ":", color="0.5", label="margins")[0],
]
fig.legend(handles=handles, loc="outside lower center", ncols=4, fontsize="small")
plt.show()

# %%
# What the program is worth
# -------------------------
# At the certified optimum the lower objective no longer matters, and what remains is a fit to the
# validation examples: the better the program is solved, the more it overfits. Measured on the
# paper's data, diabetes with its 45 quadratic features (the constant among them), 500 training, 150
# validation and 118 test rows, by
#
# .. code-block:: sh
#
#     BILEVEL_DATA=folder python examples/svm_hyperparameters.py --dataset diabetes --seeds 5
#
# over the splits 0 to 4 (means; one thread of an AMD EPYC, torch 2.13):
#
# ============================  ===========  ===============  =============  =======  =======
# method                        response     validation loss  test accuracy  f(c, z)  seconds
# ============================  ===========  ===============  =============  =======  =======
# BLOCC, as published           penalised    1.85             0.754          348.3    0.20
# BLOCC, as published           exact        2.69             0.646          474.7    0.20
# BLOCC, difference-of-convex   exact        1.14             0.734          213.4    0.42
# f*, certified on 5 of 5       –            –                0.734          213.4    0.03
# GridSearchCV(LinearSVC)       –            –                0.786          –        0.34
# BilevelSVC                    –            –                0.783          –        0.04
# ============================  ===========  ===============  =============  =======  =======
#
# Standard deviations over the splits are 0.02 to 0.04 in the accuracy, 0.07 in the second row.
# The global optimum, which fits 500 hyperparameters to 150 examples, predicts no better than the
# first steps towards it, and one C from a grid predicts better than either. So take the program
# as what it was published as, a test of solvers for coupled constraints. With two features there
# is little to overfit; an untuned classifier does as well as the optimum of this page:
untuned = LinearSVC(C=1.0).fit(train.features, train.labels)
print(f"LinearSVC(C=1): {untuned.score(test.features, test.labels):.4f}")
