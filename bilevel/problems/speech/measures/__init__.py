"""Measures: error rates, and what representations and codes say about phones."""

from bilevel.problems.speech.measures.alignment import frame_phones, phone_index
from bilevel.problems.speech.measures.bootstrap import Bootstrap, Estimate
from bilevel.problems.speech.measures.error_rates import (
    Difference,
    ErrorCounts,
    ErrorRate,
    character_errors,
    phone_errors,
    word_errors,
)
from bilevel.problems.speech.measures.normalisation import TextNormaliser
from bilevel.problems.speech.measures.probes import RidgeFit, RidgeProbe, probe_layers
from bilevel.problems.speech.measures.units import (
    CodeUsage,
    PhoneInformation,
    code_usage,
    contingency,
    majority_accuracy,
    phone_information,
)

__all__ = [
    "Bootstrap",
    "CodeUsage",
    "Difference",
    "ErrorCounts",
    "ErrorRate",
    "Estimate",
    "PhoneInformation",
    "RidgeFit",
    "RidgeProbe",
    "TextNormaliser",
    "character_errors",
    "code_usage",
    "contingency",
    "frame_phones",
    "majority_accuracy",
    "phone_errors",
    "phone_index",
    "phone_information",
    "probe_layers",
    "word_errors",
]
