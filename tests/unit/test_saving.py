"""When a run saves, and that it goes on where it cannot: on the real writer, with real refusals."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mpi4py import MPI

from esgd_hpc.checkpoint import files
from esgd_hpc.checkpoint.verify import newest_valid, verify_checkpoint
from esgd_hpc.checkpoint.writer import CheckpointWriter
from esgd_hpc.config import CheckpointSettings, Recipe
from esgd_hpc.errors import RunError
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.recipe_file import load_recipe
from esgd_hpc.saving import Saving
from unit.test_checkpoint import PROVENANCE, make_history, make_layout, make_population, names

NOBODY = 65534


class Run:
    """Saves populations, as the generation loop does."""

    def __init__(self, folder: Path, settings: CheckpointSettings) -> None:
        self.topology = Topology(MPI.COMM_SELF, 1)
        recipe: Recipe = load_recipe("digits", [f"checkpoint.keep={settings.keep}"])
        writer = CheckpointWriter(folder, make_layout(), recipe, self.topology, PROVENANCE)
        self.saving = Saving(writer, settings, self.topology)

    def save(self, generation: int, *, last: bool = False, asked: bool = False) -> None:
        population = make_population(5, make_layout(), generation)
        self.saving.save(population, make_history(generation + 1), last=last, asked=asked)


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
        run.save(generation, last=generation == 5)
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
    none.save(make_population(5, make_layout()), make_history(2), last=True)
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
    assert "the run goes on" in caplog.text
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
    with pytest.raises(RunError, match=r"File exists; generation 2 is lost, earlier .* stay"):
        run.save(2, last=True)
    assert newest_valid(tmp_path) == (tmp_path / "gen_000001", [])


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
    assert "is not there any more; it is made again" in caplog.text
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
    assert "tries again after the next generation" in caplog.text
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
    run.save(2, last=True)
    assert "the checkpoint is complete, but" in caplog.text
    assert newest_valid(tmp_path) == (tmp_path / "gen_000002", [])
