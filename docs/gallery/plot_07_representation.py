r"""
One representation, two groups
==============================

A network x turns features into a representation, a linear head y turns that into a prediction. The
head is fitted to one group of people (lower level), the representation has to serve the other group
through that head (upper level):

.. math::
    \min_x \; \operatorname{mse}_0(x, y) \quad\text{s.t.}\quad
    y \in \argmin_{y'} \; \operatorname{mse}_1(x, y').

The setting is that of arXiv:2507.20400's third experiment. Its survey data cannot be shipped; this
is the diabetes set of scikit-learn, 442 patients in two groups by sex, with the progression of the
disease to be predicted.
"""

from functools import partial

import matplotlib.pyplot as plt
import pandas as pd
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from torch.func import functional_call

from bilevel import PBGD, BilevelProblem, PBGDFree

torch.set_default_dtype(torch.float32)
features, target = load_diabetes(return_X_y=True)
group = torch.tensor(features[:, 1] > 0).long()
features = torch.tensor(features, dtype=torch.float32)[:, [0, *range(2, 10)]]
target = torch.tensor(target, dtype=torch.float32)


def split(seed):
    """(features, target) by group: of 70 % to train on, and of the rest."""
    order = torch.randperm(
        len(target), generator=torch.Generator().manual_seed(seed)
    )
    train, test = order[:309], order[309:]
    inputs = (features - features[train].mean(0)) / features[train].std(0)
    outputs = (target - target[train].mean()) / target[train].std()
    return [
        [(inputs[part[group[part] == k]], outputs[part[group[part] == k]]) for k in (0, 1)]
        for part in (train, test)
    ]  # fmt: skip


# %%
# The problem
# -----------
# Both levels are dicts of module parameters. The one line that matters is ``squeeze``: without it
# predictions of shape (n, 1) and targets of shape (n,) are subtracted to an n × n matrix, and the
# network learns the mean of the targets, nothing else. The published code of this experiment has
# that mistake; it is repeated below to show what it does.
network = torch.nn.Sequential(
    torch.nn.Linear(9, 32), torch.nn.ReLU(), torch.nn.Linear(32, 32), torch.nn.ReLU()
)  # fmt: skip
head = torch.nn.Linear(32, 1)


def start(seed):
    torch.manual_seed(seed)
    for module in (*network, head):
        if isinstance(module, torch.nn.Linear):
            module.reset_parameters()
    return [
        {name: value.detach().clone() for name, value in module.named_parameters()}
        for module in (network, head)
    ]


def mse(x, y, data, squeeze=True):
    inputs, outputs = data
    prediction = functional_call(head, y, (functional_call(network, x, (inputs,)),))
    return (
        ((prediction.squeeze(1) if squeeze else prediction) - outputs)
        .square()
        .mean()
    )


# %%
# Methods
# -------
# Adam at both levels, whole groups as batches, 300 steps, five splits. ``both groups`` trains
# network and head on the sum of the two losses: no bilevel problem at all.
adam = partial(torch.optim.Adam, lr=1e-3)
levels = {"penalty": 10.0, "upper_optimizer": adam, "lower_optimizer": adam}
solvers = {"PBGDFree": PBGDFree(**levels), "PBGD": PBGD(**levels, inner_steps=5)}
STEPS, EVERY = 300, 20
rows = []


def record(method, seed, step, errors):
    rows.append(
        {"method": method, "seed": seed, "step": step, "mse": sum(errors) / 2}
        | {f"group {k}": error for k, error in enumerate(errors)}
    )


def run(name, solver, seed, squeeze=True):
    train, test = split(seed)
    problem = BilevelProblem(
        upper=lambda x, y: mse(x, y, train[0], squeeze),
        lower=lambda x, y: mse(x, y, train[1], squeeze),
    )
    state = solver.init(problem, *start(seed))
    for step in range(1, STEPS + 1):
        state = solver.step(problem, state)
        if step % EVERY == 0:
            with torch.no_grad():
                record(
                    name,
                    seed,
                    step,
                    [mse(state.x, state.y, part).item() for part in test],
                )


for seed in range(5):
    for name, solver in solvers.items():
        run(name, solver, seed)
    run("PBGDFree, not squeezed", solvers["PBGDFree"], seed, squeeze=False)

    train, test = split(seed)
    x, y = start(seed)
    optimizer = adam([each.requires_grad_() for each in (*x.values(), *y.values())])
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        (mse(x, y, train[0]) + mse(x, y, train[1])).backward()
        optimizer.step()
        if step % EVERY == 0:
            record(
                "both groups", seed, step, [mse(x, y, part).item() for part in test]
            )

    inputs, outputs = (
        torch.cat(parts).numpy() for parts in zip(*train, strict=True)
    )
    linear = LinearRegression().fit(inputs, outputs)
    predicted = [torch.tensor(linear.predict(part[0].numpy())) for part in test]
    record("linear regression", seed, STEPS, [
        (each - part[1]).square().mean().item()
        for each, part in zip(predicted, test, strict=True)
    ])  # fmt: skip
    record(
        "the training mean",
        seed,
        STEPS,
        [part[1].square().mean().item() for part in test],
    )

# %%
# What came of it
# ---------------
# Test error in units of the target's variance at the last step, mean of five splits, and the
# standard deviation of the two groups' mean.
table = pd.DataFrame(rows)
last = table[table["step"] == STEPS].groupby("method", sort=False)
columns = ["group 0", "group 1", "mse"]
summary = last[columns].mean().join(last["mse"].std().rename("sd")).round(3)
summary

# %%
fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
curves = table.groupby(["method", "step"], sort=False)["mse"].mean().unstack(0)
for name in curves:
    points = curves[name].dropna()
    if len(points) > 1:
        ax.plot(points.index, points, label=name)
linear = summary.loc["linear regression", "mse"]
ax.axhline(linear, color="0.4", ls=":", label="linear regression")
ax.set(xlabel="step", ylabel="test error, mean of both groups")
ax.legend(frameon=False, fontsize=9)
plt.show()

# %%
# A network of this size overfits 309 patients. ``PBGD`` fits both groups to the end, as training on
# both does, and overfits soonest; ``PBGDFree``, whose network sees one group's loss only, with
# the head held by the other group's, overfits later. Stopped in time they differ little. None of
# them is better than linear regression, which is the honest summary of this experiment on data of
# this size; and with targets that are not squeezed nothing is learnt at all.
