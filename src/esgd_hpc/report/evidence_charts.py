"""What Figures 1 and 2 draw: one source of numbers and words for the page and for images."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

from esgd_hpc.report.evidence import (
    LOSS,
    TOP,
    Curve,
    Series,
    TaskRuns,
    children_curve,
    epochs_so_far,
    fitness_curve,
    has_children,
)
from esgd_hpc.report.evidence_tables import quantity_name
from esgd_hpc.report.texts import counted

LINEAR = 3.0
"""How many times the lowest fitness the highest may be on a linear scale."""
MOST_DECADES = 1e15
"""The same for a logarithmic one, whose labels would be too many."""


WORTH_A_CUT = 3.0
"""How many times as far y would reach with the early generations that are left out for it."""


class Band(NamedTuple):
    """A line and the band around it; NaN and infinities where there is nothing to draw."""

    label: str
    method: str
    variant: int
    """How many of the same method come before it."""
    x: list[int]
    line: list[float]
    low: list[float]
    high: list[float]


class Chart(NamedTuple):
    """One figure of the paper."""

    title: str
    text: str
    """What it shows, for those who see it and those who do not."""
    reading: str
    """What lines and bands are, in a few words."""
    x_title: str
    y_title: str
    bands: list[Band]
    y_range: tuple[float, float]
    """What is seen of y at first."""
    y_scale: Literal["linear", "log", "share"]
    y_ticks: list[float]
    """Where y has labels, if y is logarithmic."""


def figure_1(task: TaskRuns) -> Chart | None:
    """Return best and `TOP`-th fitness over generations; None if no generation is recorded."""
    epochs = [epochs_so_far(series.first) for series in task.series]
    x_title, is_over_epochs = _abscissa(epochs)
    bands = _bands(task.series, fitness_curve, _range_label)
    if is_over_epochs:
        pairs = zip(bands, epochs, strict=True)
        bands = [band._replace(x=taken[: len(band.x)]) for band, taken in pairs]
    bands = [band for band in bands if any(map(math.isfinite, band.line))]
    if not bands:
        return None
    loss = quantity_name(LOSS, task.data)
    (low, high), is_cut = _seen(bands)
    is_log = low > 0 and LINEAR < high / low < MOST_DECADES
    y_range = _with_margin(low, high, is_log)
    has_bands = any(band.low != band.high for band in bands)
    reading = f"thick: best; band: to the {TOP}th best, or the worst" if has_bands else "best"
    text = f"The {loss}, lower is better."
    if has_bands:
        text += (
            f" Each band reaches from the best individual, a thick line, to the {TOP}th best, or to"
            " the worst where there are fewer."
        )
    if _has_seeds(task.series):
        reading += "; medians over n seeds"
        text += " Where there are n seeds, lines and edges are medians over them."
    if is_over_epochs:
        text += " Generations of the runs differ in SGD epochs, so these are counted."
    if is_cut:
        text += f" What is above {high:.3g} at the start is left out."
    return Chart(
        title=f"Figure 1 ({task.task}): fitness",
        text=text,
        reading=reading,
        x_title=x_title,
        y_title=loss,
        bands=bands,
        y_range=y_range,
        y_scale="log" if is_log else "linear",
        y_ticks=_log_ticks(*y_range) if is_log else [],
    )


def figure_2(task: TaskRuns) -> Chart | None:
    """Return the share of children in the elite over generations; None without evolution."""
    evolved = [series for series in task.series if has_children(series)]
    bands = [band for band in _bands(evolved, children_curve, _seeds_label) if band.x]
    if not bands:
        return None
    has_seeds = _has_seeds(evolved)
    bounds = " Line: the median over n seeds; band: from the lowest to the highest of them."
    return Chart(
        title=f"Figure 2 ({task.task}): children in the elite",
        text="Share of the m best individuals that were born in the same generation."
        + (bounds if has_seeds else ""),
        reading="thick: median over n seeds; band: lowest to highest" if has_seeds else "",
        x_title="generation",
        y_title="children in the m-elite",
        bands=bands,
        y_range=(-0.03, 1.03),
        y_scale="share",
        y_ticks=[],
    )


def _bands(
    all_series: Sequence[Series],
    curve_of: Callable[[Series], Curve],
    label_of: Callable[[Series], str],
) -> list[Band]:
    seen: Counter[str] = Counter()
    bands = []
    for series in all_series:
        curve = curve_of(series)
        bands.append(Band(label_of(series), series.method, seen[series.method], *curve))
        seen[series.method] += 1
    return bands


def _range_label(series: Series) -> str:
    size = len(series.first.individuals)
    members = "" if size == 1 else f", top {TOP}" if size > TOP else f", all {size}"
    return f"{series.label}{members}{_seeds_text(series)}"


def _seeds_label(series: Series) -> str:
    return f"{series.label}{_seeds_text(series)}"


def _seeds_text(series: Series) -> str:
    return f" (n = {len(series.runs)})" if len(series.runs) > 1 else ""


def _has_seeds(all_series: Sequence[Series]) -> bool:
    return any(len(series.runs) > 1 for series in all_series)


def _abscissa(epochs: Sequence[Sequence[int]]) -> tuple[str, bool]:
    """Return the title of the x axis of Figure 1, and whether it counts SGD epochs.

    It counts generations where these have the same numbers of epochs in all series. `epochs` is of
    each series, after each of its generations.
    """
    longest = max(epochs, key=len, default=[])
    if any(list(taken) != list(longest[: len(taken)]) for taken in epochs):
        return "SGD epochs per individual", True
    steps = [after - before for before, after in pairwise(longest)]
    if not steps or len(set(steps[:-1])) > 1:
        return "generation", False
    last = f", {steps[-1]} in the last" if steps[-1] != steps[0] else ""
    return f"generation ({counted(steps[0], 'SGD epoch')} each{last})", False


def _seen(bands: Sequence[Band]) -> tuple[tuple[float, float], bool]:
    """Return the lowest y and one that all bands are below after a quarter of their way.

    And whether something is above it: the start, beside which what comes later looks the same.
    """
    values = [y for band in bands for y in (*band.line, *band.high) if math.isfinite(y)]
    settled = [y for band in bands for y in _settled(band) if math.isfinite(y)]
    lowest, highest = min(values), max(values)
    high = max(settled, default=highest)
    is_cut = lowest < high and highest - lowest > WORTH_A_CUT * (high - lowest)
    return (lowest, high if is_cut else highest), is_cut


def _settled(band: Band) -> list[float]:
    """Return line and upper edge of a band after a quarter of its way."""
    place = max(1, len(band.x) // 4)
    return [*band.line[place : place + 1], *band.high[place : place + 1]]


def _with_margin(low: float, high: float, is_log: bool) -> tuple[float, float]:
    if is_log:
        factor = (high / low) ** 0.04
        return low / factor, high * factor
    margin = 0.04 * (high - low or abs(high) or 1.0)
    return low - margin, high + margin


def _log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers from low to high, about as far from each other on a logarithmic axis."""
    if high / low > 1000:
        digits: tuple[float, ...] = (1,)
    else:
        digits = (1, 2, 5) if high / low > 10 else (1, 1.5, 2, 3, 4, 5, 7)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    ticks = [digit * 10.0**decade for decade in decades for digit in digits]
    return [tick for tick in ticks if low <= tick <= high]
