"""The Conformer block: two half feed-forwards around self-attention and a convolution."""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bilevel.problems.speech.options import EncoderOptions

Rotation: TypeAlias = tuple[Tensor, Tensor]


class ConformerBlock(nn.Module):
    r"""One layer.

    .. math::
        x &\leftarrow x + \tfrac12 \mathrm{FFN}(x), \quad x \leftarrow x + \mathrm{MHSA}(x), \\
        x &\leftarrow x + \mathrm{Conv}(x), \quad
        x \leftarrow \mathrm{LayerNorm}\bigl(x + \tfrac12 \mathrm{FFN}(x)\bigr)

    Every norm is a layer norm, in the convolution too: batch statistics would mix masked with
    unmasked views, and differ between processes. Source: Gulati et al. 2020, arXiv:2005.08100.
    """

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__()
        self.before = FeedForward(options)
        self.attention = SelfAttention(options)
        self.convolution = Convolution(options)
        self.after = FeedForward(options)
        self.norm = nn.LayerNorm(options.width)

    def forward(
        self, x: Tensor, rotation: Rotation, valid: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        """Layer output [B, T, d]; ``valid`` [B, T, 1] is 1 inside utterances, 0 on padding.

        ``mask``, broadcastable to [B, 1, T, T], says which frames a frame attends to.
        """
        x = x + 0.5 * self.before(x)
        x = x + self.attention(x, rotation, mask)
        x = x + self.convolution(x, valid)
        out: Tensor = self.norm(x + 0.5 * self.after(x))
        return out


class FeedForward(nn.Sequential):
    """Layer norm, widen, SiLU, narrow."""

    def __init__(self, options: EncoderOptions) -> None:
        width, inner = options.width, options.feedforward * options.width
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, inner),
            nn.SiLU(),
            nn.Dropout(options.dropout),
            nn.Linear(inner, width),
            nn.Dropout(options.dropout),
        )


class SelfAttention(nn.Module):
    """Multi-head attention with rotary positions (arXiv:2104.09864), which know distances only."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__()
        self.heads = options.attention_heads
        self.norm = nn.LayerNorm(options.width)
        self.inputs = nn.Linear(options.width, 3 * options.width)
        self.output = nn.Linear(options.width, options.width)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, x: Tensor, rotation: Rotation, mask: Tensor | None) -> Tensor:
        batch, frames, width = x.shape
        parts = self.inputs(self.norm(x)).view(batch, frames, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        q, k = (rotate(each, rotation) for each in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.dropout(self.output(mixed.transpose(1, 2).reshape(x.shape)))
        return out


class Convolution(nn.Module):
    """Gated pointwise convolution, depthwise convolution in time, layer norm, SiLU, pointwise."""

    def __init__(self, options: EncoderOptions) -> None:
        super().__init__()
        channels = options.expansion * options.width
        self.norm = nn.LayerNorm(options.width)
        self.inputs = nn.Linear(options.width, 2 * channels)
        self.depthwise = nn.Conv1d(
            channels, channels, options.kernel, padding=options.kernel // 2, groups=channels
        )
        self.inner_norm = nn.LayerNorm(channels)
        self.output = nn.Linear(channels, options.width)
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        x = F.glu(self.inputs(self.norm(x)))
        if valid is not None:
            x = x * valid.to(x.dtype)  # as beyond the end of an utterance that is not padded
        x = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.dropout(self.output(F.silu(self.inner_norm(x))))
        return out


def rotation_of(frames: int, channels: int, device: torch.device) -> Rotation:
    """Cosines and sines [T, D / 2] of the angles by which pairs of a head's channels turn."""
    half = channels // 2
    rates = 10_000.0 ** (-torch.arange(half, device=device) / half)
    angles = torch.arange(frames, device=device)[:, None] * rates
    return angles.cos(), angles.sin()


def rotate(z: Tensor, rotation: Rotation) -> Tensor:
    """Turn queries or keys [..., T, D]."""
    cos, sin = (each.to(z.dtype) for each in rotation)
    first, second = z.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
