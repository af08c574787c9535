from __future__ import annotations

from benchmark_utils import even_start
from benchopt import BaseDataset

from bilevel.problems.transport import random_network


class Dataset(BaseDataset):
    """A random planar network with a demand between all nodes."""

    name = "random network"
    requirements = ["pip::bilevel"]
    parameters = {"nodes": [25, 50], "seed": [0]}

    def get_data(self):
        network = random_network(self.nodes, seed=self.seed)
        return {"network": network, "start": even_start(network), "reason": ""}
