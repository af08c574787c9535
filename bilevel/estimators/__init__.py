"""scikit-learn estimators that choose their hyperparameters by bilevel optimisation."""

from bilevel.extras import require

require("sklearn", "sklearn")  # the base classes; a missing package is named with its extra

from bilevel.estimators.svc import BilevelSVC  # noqa: E402

__all__ = ["BilevelSVC"]
