"""When a run saves, and that it goes on where it cannot: on the real writer, with real refusals."""

import gc
import os
import resource
import shutil
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mpi4py import MPI

from esgd_hpc.checkpoint import files
from esgd_hpc.checkpoint.reader import open_checkpoint
from esgd_hpc.checkpoint.verify import newest_valid, verify_checkpoint
from esgd_hpc.checkpoint.writer import CheckpointWriter
from esgd_hpc.config import CheckpointSettings, Recipe
from esgd_hpc.errors import RunError
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.recipe_file import load_recipe
from esgd_hpc.saving import Saving
from unit.test_checkpoint import (
    PROVENANCE,
    make_history,
    make_layout,
    make_population,
    make_weights,
    names,
)

NOBODY = 65534


class Run:
    """Saves populations, as the generation loop does."""

    def __init__(self, folder: Path, settings: CheckpointSettings) -> None:
        self.topology = Topology(MPI.COMM_SELF, 1)
        recipe: Recipe = load_recipe("digits", [f"checkpoint.keep={settings.keep}"])
        writer = CheckpointWriter(folder, make_layout(), recipe, self.topology, PROVENANCE)
        self.saving = Saving(writer, settings, self.topology)

    def save(self, generation: int, *, must: bool = False, asked: bool = False) -> None:
        population = make_population(5, make_layout(), generation)
        self.saving.save(population, make_history(generation + 1), must=must, asked=asked)


def saved(folder: Path) -> list[int]:
    return [generation.number for generation in reversed(files.generations(folder))]


@pytest.mark.parametrize(
    ("every", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (3, [3, 5]), (9, [5])]
)
def test_checkpoints_come_as_asked_for_and_always_at_the_end(
    tmp_path: Path, every: int, expected: list[int]
) -> None:
    run = Run(tmp_path, CheckpointSettings(every=every, keep=9))
    for generation in range(1, 6):
        run.save(generation, must=generation == 5)
    assert saved(tmp_path) == expected
    assert all(verify_checkpoint(g.path) == [] for g in files.generations(tmp_path))


def test_one_that_is_asked_for_comes_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path, CheckpointSettings(every=9))
    for generation in range(1, 4):
        run.save(generation, asked=generation == 2)
    run.saving.close()
    assert saved(tmp_path) == [2]


def test_minutes_count_in_place_of_generations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    run = Run(tmp_path, CheckpointSettings(every=1, every_minutes=2.0, keep=9))
    for generation in range(1, 9):
        clock += 45.0
        run.save(generation)
    run.saving.close()
    assert saved(tmp_path) == [3, 6]


def test_without_a_folder_nothing_is_saved(tmp_path: Path) -> None:
    topology = Topology(MPI.COMM_SELF, 1)
    none = Saving(None, CheckpointSettings(), topology)
    none.save(make_population(5, make_layout()), make_history(2), must=True)
    none.close()
    assert names(tmp_path) == []


# What cannot be written ---------------------------------------------------------------------------


def test_a_checkpoint_that_fails_is_told_and_tried_again_after_the_next_generation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, CheckpointSettings(every=10))
    run.save(1, asked=True)
    run.saving.close()
    (tmp_path / "gen_000002.tmp").write_text("in the way")  # no folder can be made here
    run.save(2, asked=True)
    run.saving.close()
    assert saved(tmp_path) == [1]
    assert "gen_000002.tmp: cannot be written: File exists" in caplog.text
    assert "and the run goes on to the next" in caplog.text
    run.save(3)  # not due by `every`, but owed
    run.save(4)
    run.saving.close()
    assert saved(tmp_path) == [1, 3]
    assert newest_valid(tmp_path) == (tmp_path / "gen_000003", [])


def test_the_last_one_that_fails_ends_the_run_and_says_what_is_lost(tmp_path: Path) -> None:
    run = Run(tmp_path, CheckpointSettings())
    run.save(1)
    run.saving.close()
    (tmp_path / "gen_000002.tmp").write_text("in the way")
    with pytest.raises(
        RunError,
        match=r"File exists; the newest complete .* is generation 1, what came after it is lost",
    ):
        run.save(2, must=True)
    assert newest_valid(tmp_path) == (tmp_path / "gen_000001", [])


def test_the_first_one_that_fails_ends_the_run_before_anything_is_lost(tmp_path: Path) -> None:
    run = Run(tmp_path, CheckpointSettings())
    (tmp_path / "gen_000000.tmp").write_text("in the way")
    with pytest.raises(RunError, match=r"File exists; make room, or mend the folder, and start"):
        run.save(0, must=True)


def test_a_folder_that_vanishes_is_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    run = Run(folder, CheckpointSettings())
    run.save(1)
    run.saving.close()
    caplog.clear()
    shutil.rmtree(folder)
    run.save(2)
    run.saving.close()
    assert "is not there any more; it is made again, without its lock" in caplog.text
    assert saved(folder) == [2]


def test_a_folder_that_vanishes_while_a_checkpoint_is_written_costs_that_one_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    run = Run(folder, CheckpointSettings())

    def vanish(path: Path) -> files.FileSum:
        shutil.rmtree(folder)
        return original(path)

    original = files.file_sum
    monkeypatch.setattr(files, "file_sum", vanish)
    run.save(1)
    run.saving.close()
    monkeypatch.setattr(files, "file_sum", original)
    assert "and the run goes on to the next" in caplog.text
    run.save(2)
    run.saving.close()
    assert saved(folder) == [2]


@pytest.fixture
def read_only() -> Iterator[Path]:
    """Give a folder that this process may read but not write, also where it is root's."""
    user, folder = os.geteuid(), Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    if user == 0:
        os.seteuid(NOBODY)
    yield folder
    os.seteuid(user)
    folder.rmdir()


def test_a_read_only_folder_is_told(read_only: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(read_only, CheckpointSettings())
    run.save(1)
    assert "gen_000001.tmp: cannot be written: Permission denied" in caplog.text


def test_what_cannot_be_deleted_does_not_cost_the_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, CheckpointSettings(keep=1))
    run.save(1)
    run.saving.close()
    (tmp_path / "history.h5").unlink()
    (tmp_path / "history.h5").mkdir()
    (tmp_path / "history.h5" / "mine").write_text("")
    run.save(2, must=True)
    assert "the checkpoint is complete, but" in caplog.text
    assert newest_valid(tmp_path) == (tmp_path / "gen_000002", [])


def test_a_latest_that_cannot_be_made_does_not_cost_the_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # as file systems without links do

    monkeypatch.setattr(Path, "symlink_to", refuse)
    run = Run(tmp_path, CheckpointSettings(keep=2))
    for generation in range(1, 5):
        run.save(generation, must=generation == 4)
    assert "the checkpoint is complete, but: [Errno 1] Operation not permitted" in caplog.text
    assert saved(tmp_path) == [3, 4]


def test_a_leftover_that_cannot_be_deleted_does_not_cost_checkpoints(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gen_000099.tmp").mkdir()
    original = files.remove_generation

    def refuse(path: Path) -> None:
        if path.name == "gen_000099.tmp":  # of another user
            raise PermissionError(13, "Permission denied")
        original(path)

    monkeypatch.setattr(files, "remove_generation", refuse)
    run = Run(tmp_path, CheckpointSettings())
    run.save(1, must=True)
    assert "gen_000099.tmp cannot be deleted: Permission denied" in caplog.text
    assert saved(tmp_path) == [1]


def test_a_folder_that_cannot_be_listed_costs_checkpoints_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, CheckpointSettings())
    original = Path.iterdir

    def refuse(path: Path) -> Iterator[Path]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "iterdir", refuse)
    run.save(1)
    with pytest.raises(
        RunError, match=r"cannot be listed: Input/output error; no checkpoint is complete"
    ):
        run.save(2, must=True)
    assert "cannot be listed: Input/output error; no checkpoint is complete" in caplog.text
    monkeypatch.setattr(Path, "iterdir", original)
    run.save(3, must=True)
    assert saved(tmp_path) == [3]


def test_checkpoints_that_fail_hold_no_weights(tmp_path: Path) -> None:
    """A disk that is full for long must not fill the memory: without the cyclic collector."""
    run, layout = Run(tmp_path, CheckpointSettings()), make_layout()
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    population = make_population(5, layout)
    population.champion = population.individuals[0]
    vectors: list[weakref.ref[Any]] = []
    gc.disable()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        for generation in range(1, 4):
            population.weights = {u: make_weights(u, layout) for u in population.weights}
            population.champion_weights = make_weights(0, layout)
            vectors += map(weakref.ref, population.weights.values())
            vectors.append(weakref.ref(population.champion_weights))
            run.saving.save(population, make_history(generation + 1), must=False)
            run.saving.close()
        alive = [ref() is not None for ref in vectors]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        gc.enable()
    assert alive == [False] * 12 + [True] * 6  # the population's own
    assert saved(tmp_path) == []


def test_what_a_checkpoint_says_of_a_generation_does_not_grow_after_it_began(
    tmp_path: Path,
) -> None:
    run = Run(tmp_path, CheckpointSettings())
    history = make_history(2)
    run.saving.save(make_population(5, make_layout(), 1), history, must=False, asked=True)
    history.rows[-1].seconds["checkpoint"] = 1.0
    run.saving.close()
    assert "checkpoint" not in open_checkpoint(tmp_path).history.rows[-1].seconds
