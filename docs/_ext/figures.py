"""How the gallery's figures look."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import torch

#: Readable on white and on the dark theme's background alike.
_INK = "#727c89"
_COLOURS = ["#2f7ed8", "#e07b28", "#2a9d78", "#c2517a", "#8a6fd1", "#9a8a4a"]


def style(gallery_conf: dict[str, Any], script: str) -> None:
    """Reset matplotlib to the site's style, and torch's defaults, before each script."""
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    mpl.rcdefaults()
    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.4),
            "figure.constrained_layout.use": True,
            "figure.facecolor": "none",
            "savefig.facecolor": "none",
            "axes.facecolor": "none",
            "axes.prop_cycle": mpl.cycler(color=_COLOURS),
            "axes.edgecolor": _INK,
            "axes.labelcolor": _INK,
            "axes.titlecolor": _INK,
            "axes.titlesize": "medium",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.8,
            "text.color": _INK,
            "xtick.color": _INK,
            "ytick.color": _INK,
            "grid.color": _INK,
            "grid.alpha": 0.25,
            "grid.linewidth": 0.6,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "font.size": 10.5,
            "mathtext.fontset": "stixsans",
        }
    )
