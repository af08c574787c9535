"""The map of a plan: which links it builds, how large, and at what toll.

Traffic keeps right: of the two directions of a link each lies to the right of its arrow.
"""

from __future__ import annotations

import networkx
import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from bilevel.problems.transport import PlanLimits

INK, GREY = "#3c4651", "#d5dae0"
COLOURS = LinearSegmentedColormap.from_list("toll", ["#6cb0ee", "#2c6fd0", "#7a3fb0", "#c0186a"])
LABELLED = 60  # Nodes: the labels of more would cover the links.
POINT = 1 / 72  # inch
LEAST_COLOUR = 1e-3  # Tolls below are rounding errors.
MAP_SIDE = 6.6  # inches


def draw_map(plan) -> Figure:
    """Width: capacity. Colour: the toll, or the load where capacity is left unused."""
    network = plan.network
    at = _positions(network)
    at = (at - at.min(axis=0)) * MAP_SIDE / max(np.ptp(at, axis=0).max(), 1e-300)  # inches
    width, height = np.maximum(at.max(axis=0), (4.0, 1.6))
    figure = Figure(figsize=(width + 1.7, height + 1.5))
    axes = _axes_in_inches(figure, (0.25, 0.75, width + 0.2, height + 0.2), at)

    ends = np.stack([at[network.tail], at[network.head]], axis=1)
    axes.add_collection(LineCollection(ends, colors=GREY, linewidths=1.2, zorder=1))
    length = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
    built = is_built(plan)
    broad = min(11.0, 0.3 * np.median(length) / POINT) * POINT
    radius = _node_radius(len(network.nodes), broad)
    bands = broad * plan.capacity[built] / plan.capacity.max()
    colour, label = _colours(plan, built)
    shapes = [
        _half_arrow(start, end, band, radius)
        for (start, end), band in zip(ends[built], bands, strict=True)
    ]
    # Thick links first, so that they hide no thin one.
    order = np.argsort(-bands)
    links = PolyCollection(
        [shapes[index] for index in order], array=colour[order], cmap=COLOURS,
        norm=_norm(colour), linewidths=0, zorder=2,
    )  # fmt: skip
    axes.add_collection(links)
    _draw_nodes(axes, at, network.nodes, radius)
    tall = min(height, 3.0)
    box = (width + 0.6, 0.85 + (height - tall) / 2, 0.13, tall)
    if colour.max(initial=0.0) > LEAST_COLOUR:
        bar = figure.colorbar(links, cax=figure.add_axes(_fraction(figure, box)))
        bar.set_label(label)
        bar.outline.set_visible(False)
    _width_legend(figure, plan.capacity.max(), broad)
    figure.suptitle(
        f"{plain(network.name)}: profit {plan.profit:.5g}, {built.sum()} of {len(built)} links "
        f"built, {plan.share_served:.0%} of demand served",
        x=0.25 / figure.get_figwidth(), ha="left", fontsize="medium", color=INK,
    )  # fmt: skip
    return figure


def is_built(plan) -> np.ndarray:
    """Which links have a capacity beyond the floor that the search leaves on all of them."""
    return PlanLimits().of(plan.network).built(plan.capacity) > 0


def plain(text: str) -> str:
    """A name as it is, where matplotlib would read mathematics between dollar signs."""
    return text.replace("$", r"\$")


# Geometry ---------------------------------------------------------------------------------------


def _positions(network) -> np.ndarray:
    if network.positions is None:
        graph = network.to_graph().to_undirected()
        # Lengths of zero leave no layout.
        weight = "travel_cost" if network.travel_cost.min() > 0 else None
        layout = networkx.kamada_kawai_layout(graph, weight=weight)
        return np.array([layout[node] for node in network.nodes])
    at = network.positions[["x", "y"]].to_numpy()
    if network.name == "seville":  # degrees
        at = at * [np.cos(np.radians(at[:, 1].mean())), 1.0]
    return at


def _half_arrow(start, end, band: float, radius: float) -> np.ndarray:
    """A band on the right of the way from start to end, whose outer corner is cut at the end."""
    along = (end - start) / max(np.linalg.norm(end - start), 1e-300)
    right = np.array([along[1], -along[0]])
    start, end = start + 0.8 * radius * along, end - 0.8 * radius * along
    gap = 0.5 * POINT * right
    band = max(band, 1.2 * POINT)
    cut = min(1.2 * band + 2 * POINT, 0.5 * np.linalg.norm(end - start)) * along
    outer = gap + band * right
    return np.array([start + gap, end + gap, end - cut + outer, start + outer])


def _node_radius(count: int, broad: float) -> float:
    return max(0.5 * broad, (6.5 if count <= LABELLED else 1.5) * POINT)


# Parts of the figure ----------------------------------------------------------------------------


def _axes_in_inches(figure: Figure, box: tuple[float, ...], at: np.ndarray):
    axes = figure.add_axes(_fraction(figure, box))
    middle = (at.min(axis=0) + at.max(axis=0)) / 2
    half = np.array(box[2:]) / 2
    axes.set_xlim(middle[0] - half[0], middle[0] + half[0])
    axes.set_ylim(middle[1] - half[1], middle[1] + half[1])
    axes.set_axis_off()
    return axes


def _fraction(figure: Figure, box: tuple[float, ...]) -> tuple[float, ...]:
    size = figure.get_size_inches()
    return (box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1])


def _colours(plan, built: np.ndarray) -> tuple[np.ndarray, str]:
    if plan.unused_capacity <= 1e-3 * plan.capacity.sum():
        return plan.toll[built], "toll λ (every link is used to capacity)"
    return (plan.load / np.maximum(plan.capacity, 1e-300))[built], "load / capacity"


def _norm(colour: np.ndarray) -> Normalize:
    """Few tolls may be far larger than the others, and the smallest are rounding errors."""
    return Normalize(0.0, max(np.percentile(colour, 97), LEAST_COLOUR) if len(colour) else 1.0)


def _draw_nodes(axes, at: np.ndarray, nodes, radius: float) -> None:
    labelled = len(nodes) <= LABELLED
    axes.scatter(
        *at.T, s=(2 * radius / POINT) ** 2, facecolor="white" if labelled else INK,
        edgecolor=INK, linewidth=0.9, zorder=3,
    )  # fmt: skip
    if not labelled:
        return
    inside = max(len(str(node)) for node in nodes) <= 2
    place = {"va": "center_baseline"} if inside else {
        "va": "bottom", "xytext": (0.0, radius / POINT), "textcoords": "offset points",
        "path_effects": [withStroke(linewidth=2.5, foreground="white")],
    }  # fmt: skip
    for (x, y), node in zip(at, nodes, strict=True):
        axes.annotate(
            plain(str(node)), (x, y), ha="center", fontsize=7.5, color=INK, zorder=4, **place
        )


def _width_legend(figure: Figure, largest: float, broad: float) -> None:
    """Three capacities as bands, at the foot of the figure."""
    axes = figure.add_axes(_fraction(figure, (0.25, 0.05, figure.get_figwidth() - 0.5, 0.55)))
    axes.set(xlim=(0, figure.get_figwidth() - 0.5), ylim=(-0.275, 0.275))
    axes.set_axis_off()
    ticks = [tick for tick in MaxNLocator(3).tick_values(0.0, largest) if 0 < tick <= largest]
    axes.text(0.0, 0.0, "capacity", va="center", fontsize=8.5, color=INK)
    x = 0.7
    for tick in ticks:
        band = broad * tick / largest
        shape = _half_arrow(np.array([x, band / 2]), np.array([x + 0.45, band / 2]), band, 0.0)
        axes.add_collection(PolyCollection([shape], facecolors=INK))
        axes.text(x + 0.52, 0.0, f"{tick:g}", va="center", fontsize=8.5, color=INK)
        x += 1.0
    axes.add_collection(LineCollection([[(x, 0), (x + 0.4, 0)]], colors=GREY, linewidths=1.2))
    axes.text(x + 0.47, 0.0, "candidate, not built; traffic keeps right", va="center",
              fontsize=8.5, color=INK)  # fmt: skip
