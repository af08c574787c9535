from __future__ import annotations

from benchopt import BaseObjective
from benchopt.stopping_criterion import NoCriterion

from bilevel.problems.llm import evaluate


class Objective(BaseObjective):
    """DPO loss, preference accuracy and SFT loss on held-out records, in equal training times.

    ``value`` is the sum of both losses. A solver ends itself after ``seconds`` of training, and is
    scored ``points`` times on the way; scoring is not timed.
    """

    name = "LLM fine-tuning"
    url = "../../../benchmarks/llm"
    requirements = ["pip::bilevel[llm]"]
    min_benchopt_version = "1.6"
    sampling_strategy = "callback"
    stopping_criterion = NoCriterion(strategy="callback")
    parameters = {"seconds": [24.0], "points": [8]}
    parameter_template = "{seconds} s"

    def set_data(self, task):
        self.task = task

    def get_objective(self):
        return {"task": self.task, "seconds": self.seconds, "points": self.points}

    def evaluate_result(self, model, steps):
        found = evaluate(model, *self.task.test)
        return {
            "value": found.dpo_loss + found.sft_loss,
            "dpo_loss": found.dpo_loss,
            "preference_accuracy": found.preference_accuracy,
            "sft_loss": found.sft_loss,
            "steps": steps,
        }

    def get_one_result(self):
        return {"model": self.task.model(), "steps": 0}
