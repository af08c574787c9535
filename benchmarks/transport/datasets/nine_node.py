from __future__ import annotations

from benchmark_utils import even_start
from benchopt import BaseDataset

from bilevel.problems.transport import nine_node


class Dataset(BaseDataset):
    """The paper's network of nine nodes."""

    name = "nine-node"
    requirements = ["pip::bilevel"]

    def get_data(self):
        network = nine_node()
        return {"network": network, "start": even_start(network), "reason": ""}
