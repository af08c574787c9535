from __future__ import annotations

from benchopt import BaseDataset

from bilevel.problems.known_optima import KNOWN_OPTIMA


class Dataset(BaseDataset):
    """One of eighteen small problems with verified optima, from its customary start."""

    name = "known optimum"
    requirements = ["pip::bilevel"]
    parameters = {"problem": list(KNOWN_OPTIMA)}
    parameter_template = "{problem}"

    def get_data(self):
        return {"known": KNOWN_OPTIMA[self.problem]}
