"""TensorBoard shows every number of every generation once, also of a run that was resumed."""

import logging
import math
import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from mpi4py import MPI
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import esgd_hpc
from esgd_hpc.config import Recipe, differences, recipe_data
from esgd_hpc.errors import InputError
from esgd_hpc.history import EVOLUTION, OPTIMIZERS, GenerationRow, History, generation_row
from esgd_hpc.population import Draw, Individual, Population
from esgd_hpc.progress import Silent
from esgd_hpc.tensorboard_log import TensorBoardLog, check_tensorboard

OVERRIDES = [
    *("population.parents=4", "population.offspring=6", "task_options.hidden=8"),
    *("generations=4", "sgd.backoff_probability=0.5"),
]


class Logged(Silent):
    """Logs a run as it goes on, and remembers what it logged."""

    def __init__(self, board: TensorBoardLog) -> None:
        self.board = board
        self.rows: list[GenerationRow] = []
        self.populations: list[list[Individual]] = []

    def generation(
        self, recipe: Recipe, population: Population, history: Sequence[GenerationRow]
    ) -> None:
        self.board.generation(population, History(rows=list(history)))
        self.rows = list(history)
        self.populations.append(list(population.individuals))


def run(output: Path, log: Path, generations: range) -> Logged:
    """Train and log these generations."""
    recipe = esgd_hpc.load_recipe("digits", OVERRIDES)
    with closing(TensorBoardLog(log)) as board:
        logged = Logged(board)
        esgd_hpc.run(
            recipe,
            MPI.COMM_SELF,
            output=output,
            progress=logged,
            should_stop=lambda: len(logged.rows) == generations.stop,
        )
    return logged


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Logged]:
    """Return the log of a whole run, and what was logged."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, run(folder, folder, range(5))


def events(output: Path) -> EventAccumulator:
    """Return what TensorBoard reads, all of it."""
    accumulator = EventAccumulator(str(output / "tensorboard"), {"scalars": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


def scalars(output: Path, tag: str) -> dict[int, float]:
    """Return generation to value; every generation at most once."""
    accumulator = events(output)
    found = accumulator.Scalars(tag) if tag in accumulator.Tags()["scalars"] else []
    values = {event.step: event.value for event in found}
    assert len(values) == len(found)
    return values


def float32(value: float) -> float:
    """Return a number as events keep it."""
    return float(np.float32(value))


def make_population(*fitness: float) -> Population:
    """Return individuals of generation 3, the last of them trained."""
    draw = Draw(optimizer="adam", learning_rate=0.25)
    individuals = [Individual(uid=uid, fitness=f) for uid, f in enumerate(fitness)]
    individuals[-1] = Individual(
        uid=99, fitness=fitness[-1], metrics={"error_rate": 0.5, "odd": math.nan}, draw=draw
    )
    return Population(generation=3, individuals=individuals, owner={}, next_uid=100, weights={})


def make_history(population: Population) -> History:
    """Return a history of that generation alone."""
    recipe = esgd_hpc.load_recipe("digits", ["population.parents=4"])
    seconds = {"sgd": 1.5, "checkpoint": 0.125}
    diversity = {"": 2.5, "none": 0.75, "adam": math.nan}
    return History(rows=[generation_row(population, None, recipe, seconds, diversity)])


def test_every_number_of_a_run_is_there(straight: tuple[Path, Logged]) -> None:
    folder, logged = straight
    rows = {row.generation: row for row in logged.rows}
    assert [*rows] == [0, 1, 2, 3, 4]
    for name in (
        *("best", "best_ever", "elite_average", "worst"),
        *("lower_quartile", "median", "upper_quartile"),
    ):
        expected = {k: float32(getattr(row, name)) for k, row in rows.items()}
        assert scalars(folder, f"fitness/{name}") == expected
    shares = {k: float32(row.elite_offspring_fraction) for k, row in rows.items()}
    assert scalars(folder, "elite/offspring_fraction") == shares
    distances = {k: float32(row.diversity) for k, row in rows.items()}
    assert scalars(folder, "diversity/all") == distances
    for name in OPTIMIZERS:
        of_those = {k: row.diversity_by_optimizer.get(name) for k, row in rows.items()}
        known = {k: float32(distance) for k, distance in of_those.items() if distance is not None}
        assert scalars(folder, f"diversity/{name}") == known
        counts = {k: row.individuals_by_optimizer[name] for k, row in rows.items()}
        assert scalars(folder, f"individuals/{name}") == counts
    seconds = {k: float32(row.seconds["sgd"]) for k, row in rows.items() if k}
    assert scalars(folder, "seconds/sgd") == seconds
    for phase in EVOLUTION[:-1]:  # the last is of older runs
        assert scalars(folder, f"seconds/{phase}").keys() == seconds.keys()
    trained = {k: row for k, row in rows.items() if row.best_optimizer != "none"}
    rates = {k: float32(row.best_learning_rate) for k, row in trained.items()}
    assert rates
    assert scalars(folder, "best/learning_rate") == rates
    errors = {
        k: float32(individual.metrics["error_rate"])
        for (k, row), members in zip(rows.items(), logged.populations, strict=True)
        for individual in members
        if individual.uid == row.best_uid
    }
    assert scalars(folder, "best/error_rate") == errors


def test_the_fitness_of_the_population_is_a_histogram(straight: tuple[Path, Logged]) -> None:
    folder, logged = straight
    found = events(folder).Histograms("fitness/population")
    assert [event.step for event in found] == [0, 1, 2, 3, 4]
    for event, members in zip(found, logged.populations, strict=True):
        assert event.histogram_value.num == len(members)
        assert event.histogram_value.min == min(i.fitness for i in members)
        assert event.histogram_value.max == max(i.fitness for i in members)


def test_a_resumed_run_neither_doubles_nor_keeps_what_was_undone(
    straight: tuple[Path, Logged], tmp_path: Path
) -> None:
    run(tmp_path, tmp_path, range(3))
    with closing(TensorBoardLog(tmp_path)) as board:  # a job that was killed before it saved
        undone = make_population(9.0, 8.0)
        board.generation(undone, make_history(undone))
    assert scalars(tmp_path, "fitness/best")[3] == 8.0
    run(tmp_path, tmp_path, range(3, 5))
    best = {row.generation: float32(row.best) for row in straight[1].rows}
    assert scalars(tmp_path, "fitness/best") == best
    assert scalars(tmp_path, "diversity/all").keys() == best.keys()
    assert [e.step for e in events(tmp_path).Histograms("fitness/population")] == [*best]


def test_a_new_run_hides_an_older_one(tmp_path: Path) -> None:
    population = make_population(2.0, 1.0)
    with closing(TensorBoardLog(tmp_path)) as board:
        board.generation(population, make_history(population))
    assert scalars(tmp_path, "fitness/best") == {3: 1.0}
    newer = make_population(4.0, 3.0)
    newer.generation = 0
    with closing(TensorBoardLog(tmp_path)) as board:
        board.generation(newer, make_history(newer))
    assert scalars(tmp_path, "fitness/best") == {0: 3.0}


def test_what_is_not_finite_is_left_out(tmp_path: Path) -> None:
    population = make_population(math.inf, math.inf, 2.0, 1.0)
    with closing(TensorBoardLog(tmp_path)) as board:
        board.generation(population, make_history(population))
        everyone_failed = make_population(math.inf, math.inf)
        history = make_history(everyone_failed)
        board.generation(everyone_failed, history)
    tags = set(events(tmp_path).Tags()["scalars"])
    assert {"fitness/best", "best/error_rate", "best/learning_rate", "diversity/none"} <= tags
    assert not {"fitness/worst", "best/odd", "diversity/adam"} & tags
    (histogram,) = events(tmp_path).Histograms("fitness/population")
    assert histogram.histogram_value.num == 2


def test_a_fitness_that_explodes_is_one_more_number(tmp_path: Path) -> None:
    population = make_population(1e300, 1e30, 0.1, 0.1, 0.1)
    with closing(TensorBoardLog(tmp_path)) as board:
        board.generation(population, make_history(population))
    (histogram,) = events(tmp_path).Histograms("fitness/population")
    assert (histogram.histogram_value.num, histogram.histogram_value.max) == (4, 1e30)
    assert scalars(tmp_path, "fitness/worst") == {}
    assert scalars(tmp_path, "fitness/upper_quartile") == {3: float32(1e30)}


def test_each_generation_is_on_disk_before_the_next_begins(tmp_path: Path) -> None:
    population = make_population(2.0, 1.0)
    with closing(TensorBoardLog(tmp_path)) as board:
        board.generation(population, make_history(population))
        assert scalars(tmp_path, "fitness/best") == {3: 1.0}


def test_a_run_may_go_on_with_or_without_a_log() -> None:
    without = esgd_hpc.load_recipe("digits")
    with_log = esgd_hpc.load_recipe("digits", ["logging.tensorboard=true"])
    assert with_log.logging.tensorboard
    assert differences(recipe_data(without), recipe_data(with_log)) == []


# ---------------------------------------------------------------- what goes wrong


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    population = make_population(2.0, 1.0)
    history = make_history(population)
    with caplog.at_level(logging.WARNING), closing(TensorBoardLog(tmp_path)) as board:
        board.generation(population, history)
        (file,) = (tmp_path / "tensorboard").iterdir()
        with files_of_at_most(file.stat().st_size + 100):
            board.generation(population, history)
        board.generation(population, history)
    (message,) = caplog.messages
    assert message == (
        f"{file.parent}: TensorBoard's log cannot be written: File too large;"
        " the run goes on without it"
    )
    assert scalars(tmp_path, "fitness/best") == {3: 1.0}


def test_a_folder_that_cannot_be_made_is_told_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("mine")
    population = make_population(2.0, 1.0)
    with caplog.at_level(logging.WARNING), closing(TensorBoardLog(tmp_path)) as board:
        board.generation(population, make_history(population))
        board.generation(population, make_history(population))
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}/tensorboard: TensorBoard's log cannot be written: ")
    assert message.endswith("File exists; the run goes on without it")
    assert (tmp_path / "tensorboard").read_text() == "mine"


def test_without_the_package_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_tensorboard(tmp_path)
    for name in [n for n in sys.modules if n.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(InputError) as caught:
        check_tensorboard(tmp_path)
    assert str(caught.value).startswith("logging.tensorboard = true needs TensorBoard (")
    assert str(caught.value).endswith('install it: pip install "esgd-hpc[tensorboard]"')


def test_a_log_needs_an_output_folder() -> None:
    with pytest.raises(InputError, match=r"logging\.tensorboard = true: .* name one"):
        check_tensorboard(None)
