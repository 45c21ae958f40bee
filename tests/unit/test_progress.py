"""What rank 0 shows: one flushed line a generation, a table on a terminal; other ranks nothing."""

import io
import os
import re

import pytest

from esgd_hpc.config import Recipe
from esgd_hpc.history import GenerationRow
from esgd_hpc.population import Population
from esgd_hpc.progress import Lines, Progress, Silent, Table, progress_for
from esgd_hpc.recipe_file import recipe_from


class Out(io.StringIO):
    """Text that remembers what had been written at each flush."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed = ""

    def flush(self) -> None:
        self.flushed = self.getvalue()


def recipe(method: str = "esgd", generations: int = 10, fine_tuning: int = 0) -> Recipe:
    return recipe_from(
        {
            "task": "digits",
            "method": method,
            "generations": generations,
            "sgd": {"optimizers": [{"name": "sgd", "learning_rate": 0.1}]},
            "fine_tuning": {"epochs": fine_tuning},
        }
    )


def row(generation: int, **seconds: float) -> GenerationRow:
    return GenerationRow(
        generation=generation,
        best=0.123456789,
        best_ever=0.123456789,
        elite_average=0.25,
        lower_quartile=0.3,
        median=0.5,
        upper_quartile=1.0,
        worst=2.0,
        elite_offspring_fraction=0.75,
        best_uid=7,
        best_optimizer="sgd",
        best_learning_rate=0.1,
        theorem_1_holds=True,
        seconds=seconds,
    )


POPULATION = Population(generation=0, individuals=[], owner={}, next_uid=0, weights={})


def lines(settings: Recipe, *rows: GenerationRow) -> list[str]:
    out = Out()
    progress = Lines(out)
    for number in range(1, len(rows) + 1):
        progress.generation(settings, POPULATION, rows[:number])
        assert out.flushed == out.getvalue(), "a line waits in a buffer"
        assert out.getvalue().count("\n") == number
    progress.close()
    return out.getvalue().splitlines()


def test_a_generation_is_one_flushed_line_with_best_elite_and_seconds() -> None:
    (line,) = lines(recipe(), row(3, sgd=1.5, evolution=0.25, checkpoint=0.125))
    assert "generation 3/10" in line
    assert "best 0.123457" in line
    assert "elite average 0.25" in line
    assert "offspring in elite 75%" in line
    for seconds in ("sgd 1.50 s", "evolution 0.25 s", "checkpoint 0.12 s"):
        assert seconds in line


def test_what_was_not_done_is_not_shown() -> None:
    (line,) = lines(recipe("sgd-only"), row(3, sgd=1.5))
    assert "evolution" not in line
    assert "checkpoint" not in line
    assert "offspring" not in line
    (initial,) = lines(recipe(), row(0))
    assert "offspring" not in initial
    assert "time left" not in initial


def test_fine_tuning_has_its_name() -> None:
    (line,) = lines(recipe(generations=4, fine_tuning=2), row(5, sgd=1.0))
    assert "generation fine-tuning/4" in line


def test_the_time_left_is_that_of_the_generations_to_come() -> None:
    shown = lines(
        recipe(generations=6), row(0), *(row(k, sgd=45.0, evolution=45.0) for k in (1, 2))
    )
    assert shown[1].endswith("time left 7 min 30 s")
    assert shown[2].endswith("time left 6 min 0 s")
    (long,) = lines(recipe(generations=101), row(1, sgd=90.0))
    assert long.endswith("time left 2 h 30 min")
    (last,) = lines(recipe(generations=1), row(1, sgd=90.0))
    assert "time left" not in last


def test_the_time_left_goes_by_the_last_five_generations() -> None:
    rows = [row(1, sgd=1000.0), *(row(k, sgd=10.0) for k in range(2, 7))]
    assert lines(recipe(generations=7), *rows)[-1].endswith("time left 10 s")


def test_notes_are_flushed_lines() -> None:
    out = Out()
    Lines(out).note("hello [bold]there[/bold]")
    assert out.flushed == out.getvalue() == "hello [bold]there[/bold]\n"


@pytest.mark.parametrize("rank", [1, 2, 1000])
def test_other_ranks_show_nothing(rank: int, capfd: pytest.CaptureFixture[str]) -> None:
    out = Out()
    progress = progress_for(rank, out)
    assert isinstance(progress, Silent)
    progress.note("hello")
    progress.generation(recipe(), POPULATION, [row(1)])
    progress.close()
    assert out.getvalue() == ""
    assert capfd.readouterr() == ("", "")


def test_rank_0_writes_lines_where_there_is_no_terminal() -> None:
    assert isinstance(progress_for(0, Out()), Lines)


@pytest.mark.parametrize(("columns", "kind"), [(80, Table), (0, Lines)])
def test_rank_0_shows_a_table_on_a_terminal_of_some_size(
    columns: int, kind: type[Progress], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(Out):
        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            return 99

    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((columns, 24)))
    assert isinstance(progress_for(0, Terminal()), kind)


def table(columns: int, monkeypatch: pytest.MonkeyPatch, *rows: GenerationRow) -> str:
    """Return what a table shows in the end on a terminal of so many columns, without its codes."""
    monkeypatch.setenv("COLUMNS", str(columns))
    out = Out()
    progress = Table(out)
    progress.note("see runs/[a]/b")
    for number in range(1, len(rows) + 1):
        progress.generation(recipe(), POPULATION, rows[:number])
    progress.close()
    progress.close()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())


ROWS = [row(k, sgd=1.5, evolution=12.25, checkpoint=0.1) for k in (1, 2)]


def test_the_table_has_a_row_for_each_generation_and_takes_notes_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = table(200, monkeypatch, *ROWS)
    assert shown.startswith("see runs/[a]/b\n")
    assert re.search(r"gen +best", shown)
    assert re.search(r"\b1/10 +0\.123457 +0\.25 +75% +1\.50 s +12\.25 s +0\.10 s +2 min 5 s", shown)
    assert re.search(r"\b2/10 +0\.123457 .* 1 min 51 s", shown)


def test_the_table_fits_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = table(80, monkeypatch, *ROWS)
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    assert re.search(r"\b2/10 .* 1 min 51 s", shown)
