"""What rank 0 shows of a run: a live table on a terminal, one line a generation elsewhere."""

import math
import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol, TextIO

from esgd_hpc.config import Recipe
from esgd_hpc.history import GenerationRow
from esgd_hpc.population import Population

PHASES = ("sgd", "evolution", "checkpoint")

COLUMNS = (
    "generation",
    "best",
    "elite average",
    "offspring in elite",
    *PHASES,
    "time left",
)
HEADINGS = ("gen", "best", "elite avg", "children", "sgd", "evolution", "saving", "left")
"""The same, short enough for a terminal of 80 columns."""


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

    def note(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def generation(
        self, recipe: Recipe, population: Population, history: Sequence[GenerationRow]
    ) -> None:
        cells = _cells(recipe, history)
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
        self._live = Live(console=Console(file=out), auto_refresh=False)

    def note(self, text: str) -> None:
        self._live.console.print(text, highlight=False, markup=False)

    def generation(
        self, recipe: Recipe, population: Population, history: Sequence[GenerationRow]
    ) -> None:
        self._rows.append(_cells(recipe, history))
        if not self._live.is_started:
            self._live.start()
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Any:
        from rich.table import Table as RichTable

        table = RichTable(box=None, header_style="bold", padding=(0, 1, 0, 0))
        for heading in HEADINGS:
            table.add_column(heading, justify="right", no_wrap=True)
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
    return Table(out) if _is_terminal(out) else Lines(out)


def _is_terminal(out: TextIO) -> bool:
    # Open MPI's launcher gives rank 0 a terminal of no size where it has none itself.
    return out.isatty() and os.get_terminal_size(out.fileno()).columns > 0


def _cells(recipe: Recipe, history: Sequence[GenerationRow]) -> list[str]:
    row = history[-1]
    name = "fine-tuning" if row.generation > recipe.generations else str(row.generation)
    seconds = (row.seconds.get("sgd"), row.evolution_seconds, row.seconds.get("checkpoint"))
    share = f"{row.elite_offspring_fraction:.0%}" if recipe.method == "esgd" else ""
    return [
        f"{name}/{recipe.generations}",
        f"{row.best:.6g}",
        f"{row.elite_average:.6g}",
        share if row.generation else "",
        *("" if value is None else f"{value:.2f} s" for value in seconds),
        _time_left(recipe, history),
    ]


def _time_left(recipe: Recipe, history: Sequence[GenerationRow]) -> str:
    """Return the time to the end, if the generations to come take as long as the last five."""
    recent = [sum(row.seconds.values()) for row in history[-5:] if row.generation]
    remaining = recipe.last_generation - history[-1].generation
    if not recent or not remaining:
        return ""
    minutes, seconds = divmod(math.ceil(sum(recent) / len(recent) * remaining), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
