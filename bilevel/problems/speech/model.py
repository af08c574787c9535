"""The pretrained model: encoder, prediction head, and the frozen quantisers that label speech."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bilevel.errors import OptionError
from bilevel.problems.speech.encoder import Padding, SpeechEncoder
from bilevel.problems.speech.inputs import FrontEnd, SpeechInputs
from bilevel.problems.speech.masking import stack_frames
from bilevel.problems.speech.options import (
    MEL_BINS,
    PRESETS,
    SUBSAMPLING,
    EncoderOptions,
    LabelOptions,
    MaskOptions,
    SpeechOptions,
)
from bilevel.problems.speech.pretrained import (
    load_weights,
    read_configuration,
    save_model,
    unusable,
)
from bilevel.problems.speech.quantizers import Codebook, NormalisedProjection, RandomProjection

_KIND = "bilevel.problems.speech"


class SpeechModel(nn.Module):
    r"""What BEST-RQ and BiRQ train, with the labels that they train it by.

    The *anchor* label of a frame is the code nearest to a frozen random projection of its four
    feature frames (BEST-RQ, arXiv:2202.01855); the *enhanced* label quantises, with another frozen
    projection and the same codebook, what layers 1..k make of the unmasked features (BiRQ,
    arXiv:2509.15430, equations 2 and 4).

    Parameters
    ----------
    options
        A preset's name or :class:`SpeechOptions`. The encoder's initial weights come from torch's
        random state, the frozen parts from ``options.labels.seed`` alone.
    """

    def __init__(self, options: SpeechOptions | str = "tiny") -> None:
        super().__init__()
        if isinstance(options, str):
            options = preset(options)
        self.options = options
        labels = options.labels
        generator = torch.Generator().manual_seed(labels.seed)
        self.front_end = FrontEnd()
        self.encoder = SpeechEncoder(options.encoder)
        self.prediction = nn.Linear(
            options.encoder.width, labels.prediction_heads * labels.codebooks * labels.codes
        )
        self.codebook = Codebook(labels, generator)
        self.anchor_projection = RandomProjection(SUBSAMPLING * MEL_BINS, labels, generator)
        self.enhanced_projection = NormalisedProjection(options.encoder.width, labels, generator)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.prediction.weight.device

    def inputs(self, batch: Any) -> SpeechInputs:
        """Normalised features of a batch of waveforms, on the model's device.

        Inputs are returned as they are, so features may also be computed once and kept.
        """
        if isinstance(batch, SpeechInputs):
            return batch.to(self.device)
        inputs: SpeechInputs = self.front_end(batch, self.device)
        return inputs

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """[N, heads, codebooks, V] of hidden states [N, d]; the first head is the anchor's."""
        labels = self.options.labels
        logits: Tensor = self.prediction(hidden).float()
        shape = (labels.prediction_heads, labels.codebooks, labels.codes)
        return logits.view(-1, *shape).log_softmax(dim=-1)

    # Labels of every frame, without noise --------------------------------------------------------

    def anchor_vectors(self, features: Tensor) -> Tensor:
        """Unit vectors [B, T, codebooks, dimension] of normalised features [B, 4 T, 80]."""
        stacked = stack_frames(features)
        vectors: Tensor = self.anchor_projection(stacked.flatten(0, 1))
        return vectors.view(*stacked.shape[:2], *vectors.shape[1:])

    @torch.no_grad()
    def anchor_codes(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Anchor labels [B, T, codebooks] and which of the frames [B, T] are valid."""
        inputs = self.inputs(batch)
        vectors = self.anchor_vectors(inputs.features)
        codes = self.codebook.nearest(vectors.flatten(0, 1))
        return codes.view(*vectors.shape[:2], -1), inputs.valid

    @torch.no_grad()
    def enhanced_codes(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Enhanced labels [B, T, codebooks] by the calibrated statistics, and the valid frames."""
        inputs = self.inputs(batch)
        hidden = self.hidden(inputs, self.options.labels.layer)
        vectors = self.enhanced_projection(hidden.flatten(0, 1), self.enhanced_projection.fixed_map)
        codes = self.codebook.nearest(vectors)
        return codes.view(*hidden.shape[:2], -1), inputs.valid

    @torch.no_grad()
    def hidden(self, batch: Any, layer: int | None = None) -> Tensor:
        """Hidden states [B, T, d] of a layer, the last where not given; dropout is off.

        Layer 0 is the front end. A batch is one of
        :class:`~bilevel.problems.speech.data.SpeechBatches`, or :class:`SpeechInputs`.
        """
        inputs = self.inputs(batch)
        with evaluating(self):
            hidden: Tensor = self.encoder(inputs.features, inputs.counts, layers=layer)[0]
        return hidden

    @torch.no_grad()
    def hidden_by_layer(self, batch: Any) -> Iterator[Tensor]:
        """Hidden states [B, T, d] of the front end and of each layer, from one pass."""
        inputs = self.inputs(batch)
        padding = Padding(inputs.features, inputs.counts)
        with evaluating(self):
            hidden = self.encoder.embed(inputs.features, padding)
            yield hidden
            for layer in range(len(self.encoder.layers)):
                hidden = self.encoder.run(hidden, padding, layer, layer + 1)
                yield hidden

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Any]) -> None:
        """Fix the statistics of the enhanced labels, from a few hundred utterances.

        Of several processes each fixes those of the batches that it is given: give all the same.

        What running averages hold lags behind a changing encoder: on the corpus of the example,
        averages over a hundred steps gave other codes than the final encoder's own statistics on
        half of the frames and more.
        """
        layer = self.options.labels.layer
        states = []
        for batch in batches:
            inputs = self.inputs(batch)
            states.append(self.hidden(inputs, layer)[inputs.valid])
        if not states:
            raise OptionError("calibrate() was given no batches")
        self.enhanced_projection.calibrate(torch.cat(states)[None], None)

    # Files ---------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors``, frozen parts included, and ``config.json``."""
        save_model(self, Path(folder), _KIND, dataclasses.asdict(self.options))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> SpeechModel:
        """Read what :meth:`save_pretrained` wrote; the model is in evaluation mode.

        Raises
        ------
        DatasetError
            A file is missing, damaged, or of another model.
        """
        folder = Path(folder)
        content = read_configuration(folder, _KIND)
        try:
            options = SpeechOptions(
                encoder=EncoderOptions(**content["encoder"]),
                labels=LabelOptions(**content["labels"]),
                mask=MaskOptions(**content["mask"]),
            )
        except (KeyError, TypeError, OptionError) as error:
            raise unusable(folder, error) from error
        model = cls(options)
        load_weights(model, folder)
        return model.eval()


def preset(name: str) -> SpeechOptions:
    """The options of a preset.

    Raises
    ------
    OptionError
        There is none of this name.
    """
    if name not in PRESETS:
        raise OptionError(f"no preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
