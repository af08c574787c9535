"""How the gallery's figures look, and which of them the gallery sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

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


def bare_figures(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Show the figures that a script holds by name and that pyplot does not know."""
    variables = block_vars["example_globals"]
    shown = variables.setdefault("__shown_figures__", set())
    images = []
    for value in list(variables.values()):
        if isinstance(value, Figure) and not hasattr(value, "number") and id(value) not in shown:
            shown.add(id(value))
            path = Path(next(block_vars["image_path_iterator"]))
            sharp = path.with_name(f"{path.stem}_2_00x{path.suffix}")
            value.savefig(path)
            value.savefig(sharp, dpi=2 * value.dpi)
            images.append({0: path, 2.0: sharp})
    if not images:
        return ""
    return figure_rst(
        [image[0] for image in images], gallery_conf["src_dir"], "history of the run", images
    )
