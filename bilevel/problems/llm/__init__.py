"""LLM fine-tuning: a backbone for preferences, through the head that instructions would give it.

Extra ``llm``. Source: arXiv:2507.20400, section 4.
"""

from bilevel.problems.llm.baselines import Scalarised
from bilevel.problems.llm.batches import TokenBatch, TokenLoader
from bilevel.problems.llm.diagnostics import ResponseDiagnostics
from bilevel.problems.llm.evaluation import Scores, evaluate
from bilevel.problems.llm.finetuning import METHODS, FineTuningOptions, finetune
from bilevel.problems.llm.library import LibraryCorpus, library_corpus
from bilevel.problems.llm.log_probabilities import token_log_probabilities
from bilevel.problems.llm.losses import (
    dpo_loss,
    preference_margins,
    sequence_log_probabilities,
    sft_loss,
)
from bilevel.problems.llm.model import TwoLevelModel
from bilevel.problems.llm.problem import finetuning_problem
from bilevel.problems.llm.records import Instruction, Preference, read_records, write_records
from bilevel.problems.llm.reference import reference_log_probabilities
from bilevel.problems.llm.small import pretrain_small, small_base, small_model, train_tokenizer
from bilevel.problems.llm.tokens import Tokens, tokenize

__all__ = [
    "METHODS",
    "FineTuningOptions",
    "Instruction",
    "LibraryCorpus",
    "Preference",
    "ResponseDiagnostics",
    "Scalarised",
    "Scores",
    "TokenBatch",
    "TokenLoader",
    "Tokens",
    "TwoLevelModel",
    "dpo_loss",
    "evaluate",
    "finetune",
    "finetuning_problem",
    "library_corpus",
    "preference_margins",
    "pretrain_small",
    "read_records",
    "reference_log_probabilities",
    "sequence_log_probabilities",
    "sft_loss",
    "small_base",
    "small_model",
    "token_log_probabilities",
    "tokenize",
    "train_tokenizer",
    "write_records",
]
