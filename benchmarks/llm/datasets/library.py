from __future__ import annotations

from benchmark_utils import Task
from benchopt import BaseDataset


class Dataset(BaseDataset):
    """A small Llama, pretrained on the documentation of Python's standard library.

    Instructions: a function's summary from its signature. Preferences: the summary over the last
    sentence of the same documentation.
    """

    name = "Python library"
    requirements = ["pip::bilevel[llm]"]
    parameters = {
        "records": [800],
        "tests": [200],
        "base_steps": [400],
        "batch": [16],
        "seed": [0],
    }
    parameter_template = "{records} records, batch {batch}, seed {seed}"
    test_parameters = {"records": [16], "tests": [10], "base_steps": [2], "batch": [4]}

    def get_data(self):
        return {"task": Task.make(self.records, self.tests, self.base_steps, self.batch, self.seed)}
