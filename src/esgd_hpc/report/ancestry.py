"""The family tree of one individual as an image: who was born when, of whom, and trained by what.

From left to right goes the time: in each generation the SGD step, then births. An ancestor has a
row from its birth, a box, to the last of its children in the tree. A dot is an SGD step.
"""

import math
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import msgspec

from esgd_hpc.errors import InputError, RunError
from esgd_hpc.history import History, SgdStep
from esgd_hpc.lineage import Ancestry, Lineage, extent
from esgd_hpc.report.ancestry_places import (
    BOX_HEIGHT,
    BOX_WIDTH,
    CAPTION,
    MARGIN,
    Places,
)
from esgd_hpc.report.lineage import Family, Relative, family_of

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg")

MOST_DRAWN = 120
"""Individuals that an image has room for."""

DOTS_PER_INCH = 110.0
MOST_DOTS = 30_000
"""Of a side of a .png; a wider tree gets fewer dots per inch."""

ORIGIN_COLORS = {
    "initial": "#d7dce3",
    "offspring": "#d3ead2",
    "anchor": "#f6e3b4",
    "unknown": "#ffffff",
}
OPTIMIZER_COLORS = {"sgd": "#1f6fb4", "adam": "#d9662b"}
LINE, FAINT, FAILED = "#5b6470", "#a9b1bb", "#c0182b"


def drawable(lineage: Lineage, uid: int, depth: int | None) -> Ancestry:
    """Return the ancestry that an image has room for, at most `depth` births ago.

    Raises InputError where a depth that was asked for has more.
    """
    whole = lineage.ancestry(uid)
    depths = list(whole.depths.values())
    fitting = depths[MOST_DRAWN] - 1 if len(depths) > MOST_DRAWN else whole.whole_depth
    if depth is not None and depth > fitting < whole.whole_depth:
        raise InputError(
            f"--depth {depth}: more than the {MOST_DRAWN} individuals that an image has room for;"
            f" at most --depth {fitting}"
        )
    return lineage.ancestry(uid, fitting if depth is None else depth)


def draw_ancestry(ancestry: Ancestry, lineage: Lineage, history: History, path: FilePath) -> None:
    """Write the image, .png or .svg; an existing file is replaced.

    Raises InputError for another ending, a missing folder or a missing matplotlib, RunError where
    the disk refuses.
    """
    if path.suffix not in ENDINGS:
        raise InputError(f"--output {path}: the name must end in {' or '.join(ENDINGS)}")
    if not path.parent.is_dir():
        raise InputError(f"--output {path}: the folder {path.parent} does not exist; make it first")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise InputError(
            f"--output {path}: images need matplotlib, which is not installed;"
            " pip install 'esgd-hpc[report]'"
        ) from None
    family = _family(ancestry, lineage, history)
    places = Places(family.relatives)
    # Figure itself, unlike pyplot, needs no display.
    figure = Figure(figsize=(places.width, places.height))
    _draw(figure, ancestry, lineage, family, places)
    dots = min(DOTS_PER_INCH, MOST_DOTS / max(places.width, places.height))
    made_by = {"Date": None} if path.suffix == ".svg" else {}
    try:
        figure.savefig(path, dpi=dots, metadata=made_by)
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error}") from None


def _family(ancestry: Ancestry, lineage: Lineage, history: History) -> Family:
    """Return the ancestry with a row for each, as if those left out had never been."""
    births = []
    for birth in (lineage.births[uid] for uid in ancestry.depths):
        drawn = tuple(parent for parent in birth.parents if parent in ancestry.depths)
        births.append(msgspec.structs.replace(birth, parents=drawn))
    story = lineage.story(ancestry.root)
    until = story.birth.born if story.survived_until is None else story.survived_until
    steps = [step for step in history.steps if step.uid in ancestry.depths]
    return family_of(ancestry.root, History(births=births, steps=steps), until, len(births))


def _draw(
    figure: "Figure", ancestry: Ancestry, lineage: Lineage, family: Family, places: Places
) -> None:
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0.0, places.width)
    axes.set_ylim(0.0, places.height)
    _draw_generations(axes, places)
    _draw_lines(axes, family, places)
    for relative in family.relatives:
        _draw_birth(axes, relative, places, cut=relative.uid in ancestry.cut)
        for step in relative.steps:
            _draw_step(axes, step, places.dot(step.generation), places.y(relative))
    root = family.relatives[0]
    story = lineage.story(root.uid)
    if root.end > root.start:
        _draw_box(axes, places.box(root.end), places.y(root), root.uid, story.fitness, "white", 1.6)
    title = extent(ancestry).capitalize()
    axes.text(MARGIN, places.height - 0.24, title, fontsize=12, weight="bold", va="center")
    axes.legend(
        handles=_legend(family, bool(ancestry.cut)),
        loc="lower left",
        bbox_to_anchor=(MARGIN - 0.1, 0.04),
        bbox_transform=axes.transData,
        ncols=max(1, int(places.width / 1.7)),
        fontsize=8,
        frameon=False,
    )


def _draw_generations(axes: "Axes", places: Places) -> None:
    for generation in places.generations:
        left, right = places.band(generation)
        if generation % 2:
            axes.axvspan(
                left,
                right,
                ymin=CAPTION / places.height,
                ymax=places.top / places.height,
                color="#f4f5f7",
                lw=0,
                zorder=0,
            )
        axes.text(
            (left + right) / 2,
            CAPTION - 0.12,
            str(generation),
            fontsize=8,
            color=LINE,
            ha="center",
            va="center",
        )
    axes.text(MARGIN, CAPTION - 0.3, "generation", fontsize=8, color=LINE, va="center")


def _draw_lines(axes: "Axes", family: Family, places: Places) -> None:
    """Draw the row of each individual, and from it a curve to each of its children."""
    from matplotlib.collections import LineCollection, PathCollection
    from matplotlib.path import Path

    root = family.relatives[0]
    ends = {root.uid: places.box(root.end)}
    curves = []
    for parent, child in ((family.relatives[p], family.relatives[c]) for p, c in family.edges):
        start, end = places.leaving(child.start), places.box(child.start)
        ends[parent.uid] = max(ends.get(parent.uid, 0.0), start)
        middle, above, below = (start + end) / 2, places.y(parent), places.y(child)
        curves.append(
            Path(
                [(start, above), (middle, above), (middle, below), (end, below)],
                [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4],
            )
        )
    rows = [
        [(places.box(r.start), places.y(r)), (ends[r.uid], places.y(r))] for r in family.relatives
    ]
    axes.add_collection(
        PathCollection(curves, facecolors="none", edgecolors=FAINT, linewidths=0.9, zorder=1)
    )
    axes.add_collection(LineCollection(rows, colors=LINE, linewidths=1.6, zorder=2))


def _draw_birth(axes: "Axes", relative: Relative, places: Places, cut: bool) -> None:
    assert relative.birth is not None
    x, y = places.box(relative.start), places.y(relative)
    if cut:
        axes.plot([x - 0.2, x], [y, y], color=FAINT, linestyle=":", linewidth=1.6, zorder=1)
    color = ORIGIN_COLORS[relative.birth.origin]
    _draw_box(axes, x, y, relative.uid, relative.birth.fitness, color, 0.8)


def _draw_box(
    axes: "Axes", x: float, y: float, uid: int, fitness: float, color: str, edge: float
) -> None:
    from matplotlib.patches import Rectangle

    box = Rectangle((x, y - BOX_HEIGHT / 2), BOX_WIDTH, BOX_HEIGHT)
    box.set(facecolor=color, edgecolor=LINE, linewidth=edge, zorder=2.5)
    axes.add_patch(box)
    middle = x + BOX_WIDTH / 2
    words = "" if math.isnan(fitness) else f"{fitness:.4g}"
    axes.text(middle, y + 0.075, str(uid), fontsize=8, weight="bold", ha="center", va="center")
    axes.text(middle, y - 0.08, words, fontsize=7, ha="center", va="center")


def _draw_step(axes: "Axes", step: SgdStep, x: float, y: float) -> None:
    color = OPTIMIZER_COLORS[step.draw.optimizer]
    undone = step.epochs == step.back_offs
    face = "white" if undone else color
    axes.plot(x, y, "o", color=color, markerfacecolor=face, markersize=6.5, zorder=2.8)
    if step.failure:
        axes.plot(x, y, "x", color=FAILED, markersize=7, markeredgewidth=1.8, zorder=2.8)


def _legend(family: Family, cut: bool) -> list["Artist"]:
    """Return an entry for whatever there is in the tree."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def dot(label: str, marker: str, color: str, face: str) -> Line2D:
        return Line2D([], [], ls="", marker=marker, color=color, markerfacecolor=face, label=label)

    origins = {r.birth.origin for r in family.relatives if r.birth}
    steps = [step for relative in family.relatives for step in relative.steps]
    entries: list[Artist] = [
        Patch(facecolor=color, edgecolor=LINE, label=f"{origin}: uid, fitness at birth")
        for origin, color in ORIGIN_COLORS.items()
        if origin in origins
    ]
    if family.relatives[0].end > family.relatives[0].start:
        entries.append(Patch(facecolor="white", edgecolor=LINE, label="the individual at last"))
    optimizers = {step.draw.optimizer for step in steps}
    entries += [
        dot(f"SGD step by {name}", "o", color, color)
        for name, color in OPTIMIZER_COLORS.items()
        if name in optimizers
    ]
    if any(step.epochs == step.back_offs for step in steps):
        entries.append(dot("backed off", "o", LINE, "white"))
    if any(step.failure for step in steps):
        entries.append(dot("failed", "x", FAILED, FAILED))
    if cut:
        entries.append(Line2D([], [], color=FAINT, ls=":", lw=1.6, label="parents not drawn"))
    return entries
