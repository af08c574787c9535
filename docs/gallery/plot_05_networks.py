r"""
Networks as levels: cleaning data
=================================

Four labels in ten of a training set are random; a hundred further samples can be trusted. Each
training sample gets a weight :math:`\sigma(x_i)`, a network :math:`y` is trained on the
weighted samples (lower level), and the weights are chosen such that it does well on the trusted
ones (upper level):

.. math::
    \min_x \;\frac1m \sum_{j} \ell(y; a_j, b_j)
    \quad\text{s.t.}\quad
    y \in \argmin_{y'} \;\frac1n \sum_i \sigma(x_i)\, \ell(y'; a_i, \tilde b_i) + \lambda \|y'\|^2 .

A thousand hyperparameters, mini-batches at both levels, gradients of first order only.
"""

from functools import partial

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from bilevel import PBGD, BilevelProblem, PBGDFree
from bilevel.callbacks import Checkpoint

torch.set_default_dtype(torch.float32)
digits = load_digits()
images = torch.tensor(digits.data / 16, dtype=torch.float32)
labels = torch.tensor(digits.target)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
train, trusted, test = order[:1000], order[1000:1100], order[1100:]

chance = torch.Generator().manual_seed(1)
given = labels[train].clone()
replaced = torch.rand(1000, generator=chance) < 0.4
given[replaced] = torch.randint(0, 10, (int(replaced.sum()),), generator=chance)
wrong = given != labels[train]
print(f"{wrong.float().mean():.1%} of the training labels are wrong")

# %%
# The problem
# -----------
# The lower variable is a dict of a module's parameters, the upper one a vector; a batch is
# whatever the loader yields, here indices.
torch.manual_seed(0)
module = torch.nn.Sequential(
    torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10)
)
y0 = {name: value.detach() for name, value in module.named_parameters()}


def network(y, inputs):
    return torch.func.functional_call(module, y, (inputs,))


def upper(x, y, batch):
    (index,) = batch
    return cross_entropy(network(y, images[index]), labels[index])


def lower(x, y, batch):
    (index,) = batch
    losses = cross_entropy(
        network(y, images[train[index]]), given[index], reduction="none"
    )
    weighted = (torch.sigmoid(x[index]) * losses).mean()
    return weighted + 1e-3 * sum(value.square().sum() for value in y.values())


problem = BilevelProblem(upper=upper, lower=lower)


def loaders():
    def loader(indices, size, seed):
        shuffle = torch.Generator().manual_seed(seed)
        return DataLoader(
            TensorDataset(indices), batch_size=size, shuffle=True, generator=shuffle
        )

    return {
        "upper_batches": loader(trusted, 100, seed=2),
        "lower_batches": loader(torch.arange(1000), 250, seed=3),
    }


# %%
# The validation loss does not mention the weights, so its partial gradient in :math:`x` is
# zero, and ``PBGDFree`` is not for this problem:
adam = partial(torch.optim.Adam, lr=1e-2)
try:
    PBGDFree(upper_lr=0.1, lower_optimizer=adam).solve(
        problem, torch.zeros(1000), y0, **loaders()
    )
except ValueError as error:
    print(f"{type(error).__name__}: {error}")

# %%
# ``PBGD`` has the full direction. Any ``torch.optim`` optimiser serves at each level.
solver = PBGD(
    penalty=10.0,
    upper_optimizer=partial(torch.optim.Adam, lr=0.1),
    lower_optimizer=adam,
    inner_steps=5,
)
solution = solver.solve(
    problem,
    torch.zeros(1000),
    y0,
    max_steps=60,
    tolerance=0.0,
    log_every=5,
    **loaders(),
)
print(solution)

# %%
# What came of it
# ---------------
# Three networks for comparison: trained on everything as given, on the trusted samples alone,
# and on everything with the true labels, which nobody has.
weights = torch.sigmoid(solution.x)


def accuracy(y):
    return (
        (network(y, images[test]).argmax(1) == labels[test]).float().mean().item()
    )


def trained(index, targets, weight=1.0):
    y = {name: value.clone().requires_grad_() for name, value in y0.items()}
    optimizer = adam(y.values())
    for _ in range(400):
        optimizer.zero_grad()
        losses = cross_entropy(network(y, images[index]), targets, reduction="none")
        penalty = 1e-3 * sum(value.square().sum() for value in y.values())
        ((weight * losses).mean() + penalty).backward()
        optimizer.step()
    return y


print("test accuracy")
print(f"  all labels as given      {accuracy(trained(train, given)):.3f}")
print(
    f"  trusted samples alone    {accuracy(trained(trusted, labels[trusted])):.3f}"
)
print(f"  weighted, as solved      {accuracy(solution.y):.3f}")
print(f"  weighted, trained anew   {accuracy(trained(train, given, weights)):.3f}")
print(f"  true labels              {accuracy(trained(train, labels[train])):.3f}")

# %%
fig = plt.figure(figsize=(8.4, 3.4))
left, right = fig.subfigures(1, 2)
ax = left.subplots()
bins = torch.linspace(0, 1, 26)
ax.hist(weights[~wrong], bins=bins, alpha=0.75, label="right label")
ax.hist(weights[wrong], bins=bins, alpha=0.75, label="wrong label")
ax.set(xlabel=r"weight $\sigma(x_i)$", ylabel="training samples")
ax.legend()
right.suptitle("the lowest weights, with the given labels")
for ax, index in zip(right.subplots(3, 5).flat, weights.argsort(), strict=False):
    ax.imshow(images[train[index]].reshape(8, 8), cmap="gray_r")
    ax.set_title(int(given[index]), fontsize=9, pad=2)
    ax.axis("off")
plt.show()

# %%
# Your own loop, and going on after a crash
# -----------------------------------------
# ``solve`` is a loop over ``step``, and so can yours be. Everything that a later step depends
# on is in the state: variables, responses, optimisers, counters.
batches = loaders()
state = solver.init(problem, torch.zeros(1000), y0)
for _ in range(3):
    for lower_batch in batches["lower_batches"]:
        upper_batch = next(iter(batches["upper_batches"]))
        state = solver.step(problem, state, upper_batch, lower_batch)
    print(f"step {state.step}: f = {state.record['upper'].item():.4f}")
saved = state.state_dict()

# %%
# With ``solve``, a :class:`~bilevel.callbacks.Checkpoint` writes the whole run, the loaders'
# positions included, and ``resume`` goes on from there. A run that was interrupted ends where
# the other one did, bit for bit.
import tempfile
from pathlib import Path

path = Path(tempfile.mkdtemp()) / "run.pt"
options = {"tolerance": 0.0, "log_every": 5}
solver.solve(
    problem,
    torch.zeros(1000),
    y0,
    max_steps=30,
    callbacks=[Checkpoint(path)],
    **options,
    **loaders(),
)
resumed = solver.solve(
    problem,
    torch.zeros(1000),
    y0,
    max_steps=60,
    resume=path,
    **options,
    **loaders(),
)
print("the same weights:", torch.equal(resumed.x, solution.x))
