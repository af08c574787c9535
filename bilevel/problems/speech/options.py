"""What a speech model is made of, and how it is pretrained: every choice in one place."""

from __future__ import annotations

from dataclasses import dataclass, field

from bilevel.errors import OptionError
from bilevel.options import check_count, check_nonnegative, check_positive, check_share

#: Mel bins of the features, and how many 10 ms feature frames one encoder frame stands for.
MEL_BINS = 80
SUBSAMPLING = 4


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """A Conformer encoder.

    Parameters
    ----------
    layers, width, attention_heads
        K, d, and the heads of self-attention, which divide d into even parts.
    feedforward
        Inner width of the feed-forward modules, in multiples of d.
    kernel
        Width of the depthwise convolution in frames, odd.
    expansion
        Channels of the depthwise convolution, in multiples of d.
    window
        A frame attends to half as many frames, rounded down, to each side; to all where not given.
    dropout
        Of every residual branch.
    """

    layers: int
    width: int
    attention_heads: int
    feedforward: int = 4
    kernel: int = 15
    expansion: int = 1
    window: int | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("layers", "width", "attention_heads", "feedforward", "kernel", "expansion"):
            check_count(name, getattr(self, name))
        if self.window is not None:
            check_count("window", self.window)
        if self.width % (2 * self.attention_heads):
            raise OptionError(
                f"width={self.width} with attention_heads={self.attention_heads}: the rotary "
                "positions need an even number of channels a head"
            )
        if self.kernel % 2 == 0:
            raise OptionError(f"kernel={self.kernel}, expected an odd number of frames")
        check_share("dropout", self.dropout, below_one=True)


@dataclass(frozen=True, kw_only=True)
class MaskOptions:
    """Spans of encoder frames that are replaced by noise before the encoder sees them.

    Parameters
    ----------
    probability
        That a span starts at a frame; every utterance has at least one.
    span
        Frames of a span (40 ms each).
    noise
        Standard deviation of the noise; the features' is 1.
    """

    probability: float = 0.04
    span: int = 10
    noise: float = 0.1

    def __post_init__(self) -> None:
        check_positive("the mask's probability", self.probability)
        check_share("the mask's probability", self.probability, below_one=True)
        check_count("the mask's span", self.span)
        check_positive("the mask's noise", self.noise)


#: How the vectors that the enhanced labels quantise are brought to a common scale.
NORMALISATIONS = ("shrink", "whiten", "standardise", "layernorm")
#: How the gradient of F passes through the labels: Algorithm 1's, bounded, or not at all.
TARGET_GRADIENTS = ("detached", "capped", "full")


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    r"""Anchor labels from the features, enhanced labels from layer k.

    Parameters
    ----------
    layer
        k: the enhanced labels quantise what layers 1..k make of the unmasked features.
    codes, dimension, codebooks
        V codes of unit length in each codebook, the vectors' dimension, and how many codebooks.
    logit_scale
        s in the logits :math:`s \langle u, c_v \rangle` of unit vectors. Cosines alone are drowned
        by the Gumbel noise: with V = 8192 the code drawn would be the nearest one in some 3 of
        10,000 frames.
    noise
        Factor of the Gumbel noise; 0 takes the nearest code.
    temperature
        τ of the soft assignment whose gradient a hard one uses.
    selection
        ``"hard"``: one code a frame, straight-through gradient; ``"soft"``: the softmax weights.
    target_gradient
        ``"full"``: F is differentiated through its labels too, as the paper's Algorithm 1 does;
        ``"capped"``: that part's norm at layer k is at most ``gradient_cap`` times the other's, in
        each process by its own share of the batch;
        ``"detached"``: not at all.
    gradient_cap
        For ``"capped"``.
    normalisation
        Of the projected vectors, by the batch's statistics: ``"shrink"`` whitens with the
        covariance plus ``ridge`` times its mean variance, ``"whiten"`` with next to no ridge,
        ``"standardise"`` scales each feature, ``"layernorm"`` does nothing beyond the layer norm
        that all of them begin with.
    ridge
        For ``"shrink"``.
    prediction_heads
        1: one softmax predicts both labels; 2: one each.
    seed
        Of the frozen projections and codebooks.
    """

    layer: int
    codes: int = 8192
    dimension: int = 16
    codebooks: int = 1
    logit_scale: float = 40.0
    noise: float = 1.0
    temperature: float = 0.5
    selection: str = "hard"
    target_gradient: str = "detached"
    gradient_cap: float = 0.1
    normalisation: str = "shrink"
    ridge: float = 0.3
    prediction_heads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("layer", "dimension", "codebooks", "prediction_heads"):
            check_count(name, getattr(self, name))
        check_count("codes", self.codes, least=2)
        check_count("the labels' seed", self.seed, least=0)
        for name in ("logit_scale", "temperature", "gradient_cap", "ridge"):
            check_positive(name, getattr(self, name))
        check_nonnegative("noise", self.noise)
        if self.prediction_heads > 2:
            raise OptionError(f"prediction_heads={self.prediction_heads}, expected 1 or 2")
        for name, choices in (
            ("selection", ("hard", "soft")),
            ("target_gradient", TARGET_GRADIENTS),
            ("normalisation", NORMALISATIONS),
        ):
            if getattr(self, name) not in choices:
                raise OptionError(
                    f"{name}={getattr(self, name)!r}, expected one of {', '.join(choices)}"
                )


@dataclass(frozen=True, kw_only=True)
class SpeechOptions:
    """A model: its encoder, its labels, its mask."""

    encoder: EncoderOptions
    labels: LabelOptions
    mask: MaskOptions = field(default_factory=MaskOptions)

    def __post_init__(self) -> None:
        if self.labels.layer > self.encoder.layers:
            raise OptionError(
                f"the labels come from layer {self.labels.layer} of an encoder with "
                f"{self.encoder.layers} layers"
            )


PRESETS: dict[str, SpeechOptions] = {
    "tiny": SpeechOptions(
        encoder=EncoderOptions(layers=5, width=64, attention_heads=4, feedforward=2),
        labels=LabelOptions(layer=3, codes=512),
        mask=MaskOptions(probability=0.12, span=4),
    ),
    "small": SpeechOptions(
        encoder=EncoderOptions(layers=10, width=256, attention_heads=4),
        labels=LabelOptions(layer=7, codes=2048),
    ),
    "c1": SpeechOptions(
        encoder=EncoderOptions(layers=5, width=1024, attention_heads=16, expansion=2),
        labels=LabelOptions(layer=4),
    ),
    "c2": SpeechOptions(
        encoder=EncoderOptions(layers=10, width=768, attention_heads=12, expansion=2),
        labels=LabelOptions(layer=7),
    ),
    "c3": SpeechOptions(
        encoder=EncoderOptions(layers=10, width=1024, attention_heads=16, expansion=2, window=200),
        labels=LabelOptions(layer=7),
    ),
}
"""Sizes by name.

``c1``, ``c2`` (155M) and ``c3`` (275M) have the depths, label layers and, within 4 %, the sizes of
the three models of arXiv:2509.15430, which does not give the widths: they follow from the sizes.
``tiny`` (0.3M) trains on a CPU in minutes; ``small`` (8M) is between.
"""
