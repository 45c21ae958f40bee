"""What rank 0 shows while a run goes on: a live table on a terminal, one line a generation elsewhere."""

import math
import sys
import time
from collections.abc import Sequence
from typing import Any, Protocol, TextIO

from esgd_hpc.config import Recipe
from esgd_hpc.population import GenerationRow, Population

COLUMNS = ("generation", "best", "elite average", "offspring in elite", "seconds", "left")


class Progress(Protocol):
    """Something that shows finished generations on rank 0."""

    def note(self, text: str) -> None:
        """Show one line of text."""

    def generation(
        self, recipe: Recipe, population: Population, history: Sequence[GenerationRow]
    ) -> None:
        """Show the newest row of the history."""

    def close(self) -> None:
        """Show nothing more."""


class Silent:
    """Shows nothing: other ranks, and programs that do not ask for more."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def generation(
        self, recipe: Recipe, population: Population, history: Sequence[GenerationRow]
    ) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Show nothing."""


class Lines:
    """One flushed plain line a generation, for logs and pipes."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._left = _TimeLeft()

    def note(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def generation(
        self, recipe: Recipe, population: Population, history: Sequence[GenerationRow]
    ) -> None:
        cells = _cells(recipe, history, self._left)
        named = zip(COLUMNS, cells, strict=True)
        self.note("  ".join(f"{name} {cell}" for name, cell in named if cell))

    def close(self) -> None:
        self._out.flush()


class Table:
    """A table that grows in place on a terminal."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._rows: list[list[str]] = []
        self._left = _TimeLeft()
        self._live = Live(console=Console(file=out), auto_refresh=False)
        self._live.start()

    def note(self, text: str) -> None:
        self._live.console.print(text, highlight=False, markup=False)

    def generation(
        self, recipe: Recipe, population: Population, history: Sequence[GenerationRow]
    ) -> None:
        self._rows.append(_cells(recipe, history, self._left))
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Any:
        from rich.table import Table as RichTable

        table = RichTable(box=None, header_style="bold")
        for name in COLUMNS:
            table.add_column(name, justify="left" if name == "seconds" else "right")
        height = max(5, self._live.console.height - 4)
        for row in self._rows[-height:]:
            table.add_row(*row)
        return table

    def close(self) -> None:
        self._live.stop()


def progress_for(rank: int, out: TextIO = sys.stdout) -> Progress:
    """Return what this rank shows: nothing but on rank 0; a table where `out` is a terminal."""
    if rank != 0:
        return Silent()
    return Table(out) if out.isatty() else Lines(out)


class _TimeLeft:
    """Estimates the time to the end from the generations seen so far."""

    def __init__(self) -> None:
        self._seen: list[float] = [time.monotonic()]

    def after(self, generation: int, last: int) -> str:
        self._seen.append(time.monotonic())
        recent = self._seen[-6:]
        seconds = (recent[-1] - recent[0]) / (len(recent) - 1) * (last - generation)
        if generation == 0 or generation >= last:
            return ""
        minutes, rest = divmod(math.ceil(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _cells(recipe: Recipe, history: Sequence[GenerationRow], left: _TimeLeft) -> list[str]:
    row = history[-1]
    name = "fine-tuning" if row.generation > recipe.generations else str(row.generation)
    share = f"{row.elite_offspring_fraction:.0%}" if recipe.method == "esgd" else ""
    return [
        f"{name}/{recipe.generations}",
        f"{row.best:.6g}",
        f"{row.elite_average:.6g}",
        share if row.generation else "",
        " ".join(f"{phase} {seconds:.2f}" for phase, seconds in row.seconds.items()),
        left.after(row.generation, recipe.last_generation),
    ]
