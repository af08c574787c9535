"""The speech encoder: a convolutional front end and Conformer layers that can be run in part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilevel.errors import OptionError
from bilevel.problems.speech.conformer import ConformerBlock, rotation_of
from bilevel.problems.speech.options import MEL_BINS, SUBSAMPLING, EncoderOptions


class SpeechEncoder(nn.Module):
    """Features [B, F, 80] to hidden states [B, T, d], T = ceil(F / 4).

    Two convolutions of stride 2, centred on the four feature frames that an encoder frame stands
    for, then Conformer layers. Padding does not change what an utterance's frames become.
    """

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__()
        self.options = options
        self.width = options.width
        self.front = nn.ModuleList(
            nn.Conv1d(channels, options.width, kernel_size=4, stride=2, padding=1)
            for channels in (MEL_BINS, options.width)
        )
        self.front_norm = nn.LayerNorm(options.width)
        self.layers = nn.ModuleList(ConformerBlock(options) for _ in range(options.layers))

    def forward(
        self, features: Tensor, frame_counts: Tensor | None = None, *, layers: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Hidden states of the last layer, or of the one asked for.

        Parameters
        ----------
        features
            [B, F, 80], normalised; beyond an utterance's frames the values do not matter.
        frame_counts
            [B], feature frames of each utterance; all F where not given.
        layers
            Stop after this many.

        Returns
        -------
        hidden, lengths
            [B, T, d], and the [B] encoder frames that rest on four feature frames.
        """
        padding = Padding(features, frame_counts)
        hidden = self.run(self.embed(features, padding), padding, 0, layers)
        return hidden, padding.lengths

    def embed(self, features: Tensor, padding: Padding) -> Tensor:
        """Front end: [B, F, 80] to [B, T, d]."""
        x = F.pad(features, (0, 0, 0, -features.shape[1] % SUBSAMPLING)).transpose(1, 2)
        for factor, convolution in enumerate(self.front):
            valid = padding.frames(x.shape[2], 2**factor)
            if valid is not None:
                x = x.masked_fill(~valid[:, None, :], 0.0)
            x = F.silu(convolution(x))
        out: Tensor = self.front_norm(x.transpose(1, 2))
        return out

    def run(
        self, hidden: Tensor, padding: Padding, first: int = 0, last: int | None = None
    ) -> Tensor:
        """Layers ``first`` + 1 to ``last`` on hidden states [B, T, d]."""
        if last is not None and not 0 <= last <= len(self.layers):
            raise OptionError(f"layer {last} of an encoder with {len(self.layers)} layers")
        valid = padding.frames(hidden.shape[1], SUBSAMPLING)
        mask = self._attended(hidden, valid)
        inside = None if valid is None else valid[:, :, None]
        rotation = rotation_of(
            hidden.shape[1], self.width // self.options.attention_heads, hidden.device
        )
        for layer in self.layers[first:last]:
            hidden = layer(hidden, rotation, inside, mask)
        return hidden

    def _attended(self, hidden: Tensor, valid: Tensor | None) -> Tensor | None:
        mask = None if valid is None else valid[:, None, None, :]
        if self.options.window is not None and hidden.shape[1] > self.options.window // 2:
            steps = torch.arange(hidden.shape[1], device=hidden.device)
            near = (steps[:, None] - steps).abs() <= self.options.window // 2
            # A frame of padding attends to itself: an empty softmax would be NaN.
            mask = (
                near
                if mask is None
                else (near & mask) | torch.eye(len(steps), dtype=torch.bool, device=hidden.device)
            )
        return mask

    def compile_layers(self) -> None:
        """Compile each layer with ``torch.compile``, once for all lengths."""
        for layer in self.layers:
            layer.compile()


class Padding:
    """Which frames of a padded batch are an utterance's, at every rate of the encoder."""

    def __init__(self, features: Tensor, frame_counts: Tensor | None) -> None:
        batch, frames = features.shape[:2]
        if features.ndim != 3 or features.shape[2] != MEL_BINS:
            raise OptionError(
                f"the features have shape {tuple(features.shape)}, expected [B, F, {MEL_BINS}]"
            )
        counts = torch.full((batch,), frames, device=features.device)
        if frame_counts is not None:
            counts = frame_counts.to(features.device)
        padded = frame_counts is not None or frames % SUBSAMPLING > 0
        self.counts = counts if padded else None
        self.lengths = counts // SUBSAMPLING

    def frames(self, total: int, factor: int) -> Tensor | None:
        """[B, total], true inside the utterances; ``None`` where nothing is padded.

        ``factor`` is how many feature frames a frame stands for.
        """
        if self.counts is None:
            return None
        steps = torch.arange(total, device=self.counts.device)
        return steps[None, :] * factor < self.counts[:, None]
