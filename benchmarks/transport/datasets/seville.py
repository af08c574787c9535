from __future__ import annotations

from benchopt import BaseDataset

from bilevel.errors import BilevelError
from bilevel.problems.transport import seville, seville_start


class Dataset(BaseDataset):
    """Seville's metro, from the published start."""

    name = "seville"
    requirements = ["pip::bilevel", "pip::openpyxl", "pip::pooch"]

    def get_data(self):
        try:
            network = seville()
        except BilevelError as error:
            return {"network": None, "start": None, "reason": str(error)}
        return {"network": network, "start": seville_start(network), "reason": ""}
