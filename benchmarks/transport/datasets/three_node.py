from __future__ import annotations

from benchmark_utils import even_start
from benchopt import BaseDataset

from bilevel.problems.transport import three_node


class Dataset(BaseDataset):
    """The paper's network of three nodes."""

    name = "three-node"
    requirements = ["pip::bilevel"]

    def get_data(self):
        network = three_node()
        return {"network": network, "start": even_start(network), "reason": ""}
