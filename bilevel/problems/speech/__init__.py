"""Self-supervised speech pretraining: BEST-RQ and BiRQ, from audio to error rates.

Extra ``speech``. Sources: Chiu et al. 2022, arXiv:2202.01855 (BEST-RQ); arXiv:2509.15430 (BiRQ).
"""

from bilevel.problems.speech.codes import (
    CodeMonitor,
    CodeStatistics,
    CollapseError,
    CollapseWarning,
)
from bilevel.problems.speech.encoder import SpeechEncoder
from bilevel.problems.speech.inputs import SpeechInputs
from bilevel.problems.speech.losses import METHODS, PretrainingLosses
from bilevel.problems.speech.model import SpeechModel
from bilevel.problems.speech.options import (
    PRESETS,
    EncoderOptions,
    LabelOptions,
    MaskOptions,
    SpeechOptions,
)
from bilevel.problems.speech.pretraining import PretrainingOptions, pretrain, pretraining_problem
from bilevel.problems.speech.store import FeatureStore

__all__ = [
    "METHODS",
    "PRESETS",
    "CodeMonitor",
    "CodeStatistics",
    "CollapseError",
    "CollapseWarning",
    "EncoderOptions",
    "FeatureStore",
    "LabelOptions",
    "MaskOptions",
    "PretrainingLosses",
    "PretrainingOptions",
    "SpeechEncoder",
    "SpeechInputs",
    "SpeechModel",
    "SpeechOptions",
    "pretrain",
    "pretraining_problem",
]
