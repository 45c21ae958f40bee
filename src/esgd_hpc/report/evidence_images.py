"""Figures 1 and 2 as images: told apart by colour, and without it by the dashes of lines.

The same numbers give the same bytes, with the same matplotlib.
"""

import io
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from esgd_hpc.report.evidence_charts import Band, Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENDINGS = ("png", "svg")

DOTS_PER_INCH = 160
MOST_LETTERS = 70
"""Of a text in an image."""


class Look(NamedTuple):
    """How a method is drawn."""

    color: str
    """Of the palette of Okabe and Ito, which the colour-blind can tell apart."""
    dashes: str | tuple[int, tuple[int, ...]]


LOOKS = {
    "single": Look("#000000", (0, (5, 2))),
    "population": Look("#d55e00", (0, (7, 2, 1, 2))),
    "sgd-only": Look("#009e73", (0, (1, 1))),
    "esgd": Look("#0072b2", "-"),
    "esgd-anchor": Look("#cc79a7", (0, (3, 1, 1, 1, 1, 1))),
}
UNKNOWN = Look("#666666", (0, (2, 2)))
VARIANT_COLORS = ("#56b4e9", "#e69f00", "#cc79a7", "#999999")
"""For the second series of a method, the third, ..."""
MARKERS = ("", "o", "s", "^", "D", "v", "x")
"""For the first series of a method, the second, ..."""

SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "svg.hashsalt": "esgd",  # or names inside the file would be drawn by chance
    "text.parse_math": False,  # a name may hold any letters
    "text.usetex": False,
}


def image(chart: Chart, ending: str) -> bytes:
    """Return a figure as a file with one of `ENDINGS`.

    Raises ModuleNotFoundError without matplotlib.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    content = io.BytesIO()
    # Whatever a user's matplotlibrc says.
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        # Figure itself, unlike pyplot, needs no display.
        figure = Figure(figsize=(7.0, 4.6), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, chart)
        figure.legend(
            loc="outside lower center", ncols=2, frameon=False, fontsize=9, handlelength=3.2
        )
        dated = {"Date": None} if ending == "svg" else {}
        figure.savefig(content, format=ending, dpi=DOTS_PER_INCH, metadata=dated)
    return content.getvalue()


def _draw(axes: "Axes", chart: Chart) -> None:
    for band in chart.bands:
        _draw_band(axes, band)
    axes.set_title(_fitting(chart.title), fontsize=11, pad=20 if chart.reading else 6)
    axes.annotate(
        chart.reading, (0.5, 1.0), (0, 5), "axes fraction", "offset points",
        fontsize=9, color="#444444", ha="center",
    )  # fmt: skip
    axes.set_xlabel(chart.x_title)
    axes.set_ylabel(chart.y_title)
    _draw_scales(axes, chart)
    axes.margins(x=0.02)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_scales(axes: "Axes", chart: Chart) -> None:
    from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if chart.y_scale == "log":
        axes.set_yscale("log")
        axes.set_yticks(chart.y_ticks, [f"{tick:g}" for tick in chart.y_ticks])
        axes.yaxis.set_minor_locator(NullLocator())
    elif chart.y_scale == "share":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
    axes.set_ylim(*chart.y_range)


def _draw_band(axes: "Axes", band: Band) -> None:
    color, dashes = LOOKS.get(band.method, UNKNOWN)
    if band.variant:
        color = VARIANT_COLORS[(band.variant - 1) % len(VARIANT_COLORS)]
    line, low, high = map(_drawable, (band.line, band.low, band.high))
    if band.low != band.high:
        axes.fill_between(band.x, low, high, facecolor=color, alpha=0.16, linewidth=0.0, zorder=2)
        for edge in (high,) if band.low == band.line else (low, high):
            axes.plot(band.x, edge, color=color, linestyle=dashes, linewidth=0.9, zorder=2.5)
    axes.plot(
        band.x,
        line,
        color=color,
        linestyle=dashes,
        linewidth=2.0,
        marker=MARKERS[band.variant % len(MARKERS)],
        markersize=4,
        label=_fitting(band.label),
        zorder=3,
    )


def _drawable(values: Sequence[float]) -> list[float]:
    """Return values with gaps where they are not finite."""
    return [value if math.isfinite(value) else math.nan for value in values]


def _fitting(text: str) -> str:
    """Return a text that an image can hold, also where it comes from a name that is no text."""
    plain = text.encode("utf-8", errors="backslashreplace").decode()
    line = " ".join(plain.split())
    return line if len(line) <= MOST_LETTERS else f"{line[: MOST_LETTERS - 1]}…"
