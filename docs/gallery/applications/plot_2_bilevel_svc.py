r"""
A linear classifier that chooses its C
======================================

:class:`~bilevel.estimators.BilevelSVC` is a scikit-learn estimator: a linear classifier with a
soft margin, whose trade-off C minimises a cross-validation loss. A grid search answers the same
question by trying values. Here it is stated as what it is,

.. math::
    \min_{C} \; \frac1K \sum_{k=1}^K \frac{1}{|V_k|} \sum_{i \in V_k}
        \ell_{\mathrm{val}}\bigl(t_i (w_k^\top a_i + b_k)\bigr)
    \quad\text{s.t.}\quad
    (w_k, b_k) = \argmin_{w, b} \tfrac12 \|w\|^2
        + C \sum_{i \notin V_k} \ell\bigl(t_i (w^\top a_i + b)\bigr),

a bilevel problem over the folds :math:`V_1, \dots, V_K`, in which x is :math:`\log C` and y are
the K classifiers. Newton's method finds these to rounding, :class:`~bilevel.PBGD` differentiates
the validation loss through them, and a quasi-Newton step moves :math:`\log C`; at the end the
classifier is fitted to all examples with the C that was found.
"""

# %%
# Use
# ---
# As any classifier, in a pipeline that puts the features on a common scale first. Breast cancer
# has 569 examples with 30 features; a quarter is kept for the test.
import math
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from bilevel.estimators import BilevelSVC

X, y = load_breast_cancer(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)

model = make_pipeline(StandardScaler(), BilevelSVC()).fit(X_train, y_train)
print(
    f"C = {model[-1].best_C_:.3f}, test accuracy {model.score(X_test, y_test):.4f}"
)

# %%
# The record of the selection is an ordinary :class:`~bilevel.Solution`, with its residuals:
print(model[-1].solution_)

# %%
# Why not a grid
# --------------
# The cross-validation loss is a smooth function of :math:`\log C`. Drawn below by brute force,
# with scikit-learn's logistic regression, whose loss is the default here; and the point that the
# estimator found.
scaled = StandardScaler().fit_transform(X_train)
values = np.logspace(-3, 3, 31)
losses = [
    -cross_val_score(
        LogisticRegression(C=C, tol=1e-8, max_iter=10_000),
        scaled,
        y_train,
        scoring="neg_log_loss",
    ).mean()
    for C in values
]
selected = BilevelSVC().fit(scaled, y_train)

fig, ax = plt.subplots()
ax.plot(values, losses, "o-", color="C1", markersize=3, label="by brute force")
found = selected.best_C_, selected.solution_.upper_value
ax.plot(*found, "*", color="C0", markersize=14, label="BilevelSVC")
ax.set(xscale="log", xlabel="C", ylabel="5-fold log loss")
ax.legend()
plt.show()

# %%
# Against grid searches
# ---------------------
# Ten random splits, five folds each, and thirteen values of C in the grids. The differences of
# accuracy are paired: a split's own, with their standard error. Seconds are those of the machine
# that built this page, one thread.
grid = {"C": np.logspace(-4, 2, 13)}
competitors = {
    "BilevelSVC": BilevelSVC(),
    "BilevelSVC, squared hinge": BilevelSVC(
        loss="squared_hinge", validation_loss="squared_hinge"
    ),
    "GridSearchCV, LinearSVC": GridSearchCV(LinearSVC(dual=False), grid),
    "GridSearchCV, logistic": GridSearchCV(LogisticRegression(), grid),
}


def compare(X, y, competitors, splits=10):
    accuracies, seconds, chosen = {}, {}, {}
    for name, classifier in competitors.items():
        accuracies[name], seconds[name], chosen[name] = [], [], []
        for seed in range(splits):
            X_train, X_test, y_train, y_test = train_test_split(
                X, y, random_state=seed
            )
            pipeline = make_pipeline(StandardScaler(), classifier)
            began = time.perf_counter()
            with warnings.catch_warnings():  # for some C they converge slowly
                warnings.simplefilter("ignore", ConvergenceWarning)
                pipeline.fit(X_train, y_train)
            seconds[name].append(time.perf_counter() - began)
            accuracies[name].append(pipeline.score(X_test, y_test))
            best = getattr(pipeline[-1], "best_C_", None)
            C = pipeline[-1].best_params_["C"] if best is None else best
            chosen[name].append(np.exp(np.mean(np.log(C))))
    accuracies = pd.DataFrame(accuracies)
    difference = accuracies.sub(accuracies["GridSearchCV, LinearSVC"], axis=0)
    return pd.DataFrame(
        {
            "test accuracy": accuracies.mean().round(4),
            "difference": difference.mean().round(4),
            "± s.e.": (difference.std() / math.sqrt(splits)).round(4),
            "median C": pd.DataFrame(chosen).median().round(3),
            "seconds": pd.DataFrame(seconds).median().round(3),
        }
    )


BilevelSVC().fit(scaled, y_train)  # so that no row is billed for imports
compare(X, y, competitors)

# %%
# More data sets, measured once on one thread of an AMD EPYC with scikit-learn 1.9, by
#
# .. code-block:: sh
#
#     BILEVEL_DATA=folder benchopt run benchmarks/svm_tuning --config benchmarks/svm_tuning/full.yml
#     python benchmarks/report.py
#
# over the splits 0 to 9: test accuracy, the paired difference to ``GridSearchCV(LinearSVC)``, and
# the median of the processor's milliseconds. ``BilevelSVC`` has its defaults; 44 and 27 features
# are the polynomials, without a constant, of the original 8 and 2, and 60 of the 90 are noise.
#
# =======================  ==========  ===========  ================  =============  ========
# data                     BilevelSVC  grid search  difference        BilevelSVC ms  grid ms
# =======================  ==========  ===========  ================  =============  ========
# breast cancer, 30        0.9755      0.9783       -0.0028 ± 0.0032  40             329
# breast cancer, 90        0.9657      0.9622       +0.0035 ± 0.0016  63             375
# diabetes, 8              0.7682      0.7677       +0.0005 ± 0.0040  46             212
# diabetes, 44             0.7703      0.7734       -0.0031 ± 0.0047  93             475
# fourclass, 2             0.7542      0.7505       +0.0037 ± 0.0015  40             232
# fourclass, 27            0.9972      0.9968       +0.0005 ± 0.0008  88             711
# =======================  ==========  ===========  ================  =============  ========
#
# Within the noise of the grid on four of six, better on two, in at most a quarter of the time. On
# fourclass with 2 features, which no line separates well, the loss matters more than how C is
# chosen: there the smoothed
# mistakes as validation loss reach 0.7648, and a grid over ``SVC(kernel="linear")``, which has the
# hinge loss, 0.7727.

# %%
# More hyperparameters than a grid can hold
# -----------------------------------------
# With ``per_feature=True`` every feature has a penalty of its own, found by the same gradient;
# with 13 values each, a grid over the 90 features below would have :math:`13^{90}` points. Among
# them are 60 columns of noise. ``shrinkage`` pulls the penalties together; without it they
# overfit the folds, and take longer to find. Five splits:
noise = np.random.RandomState(0).standard_normal((len(X), 60))
noisy = np.hstack([X, noise])
per_feature = {
    "BilevelSVC": BilevelSVC(),
    "BilevelSVC, per feature": BilevelSVC(per_feature=True),
    "BilevelSVC, per feature, no shrinkage": BilevelSVC(
        per_feature=True, shrinkage=0.0
    ),
    "GridSearchCV, LinearSVC": competitors["GridSearchCV, LinearSVC"],
}
compare(noisy, y, per_feature, splits=5)

# %%
# What was learnt about the columns: the largest :math:`C_j`, that is the smallest penalties, all
# belong to measurements.
detailed = BilevelSVC(per_feature=True).fit(
    StandardScaler().fit_transform(noisy), y
)
fig, ax = plt.subplots()
bins = np.geomspace(detailed.best_C_.min() * 0.9, detailed.best_C_.max() * 1.1, 26)
ax.hist(detailed.best_C_[:30], bins, alpha=0.75, label="30 measurements")
ax.hist(detailed.best_C_[30:], bins, alpha=0.75, label="60 columns of noise")
ax.set(xscale="log", xlabel="$C_j$", ylabel="features")
ax.legend()
plt.show()

# %%
# Options
# -------
# ===================  ==========================================================================
# ``loss``             of the training examples: ``"log_loss"`` (logistic regression) or
#                      ``"squared_hinge"`` (a support vector machine)
# ``validation_loss``  what C is judged by: either of these, or ``"smoothed_zero_one"``,
#                      which follows the number of mistakes
# ``per_feature``      a C for every feature
# ``shrinkage``        how strongly these are pulled together
# ``cv``               the folds, as in ``GridSearchCV``
# ``C_bounds``         the interval of C
# ``tol``              when the search ends
# ===================  ==========================================================================
#
# With the log loss the decision function estimates log-odds, so that probabilities follow from it:
probability = 1 / (1 + np.exp(-model.decision_function(X_test)))
print(f"test log loss: {log_loss(y_test, probability):.4f}")
