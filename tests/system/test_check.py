"""`esgd check` as a user starts it: all ranks leave with one status, and nothing stays behind."""

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Launch

AREAS = ["mpi", "ranks", "groups", "cpu", "gpu", "averaging", "network", "task", "memory"]
AREAS += ["output", "job"]
RECIPE = """\
extends = "digits"

[topology]
ranks_per_group = {ranks_per_group}
"""
SINGLETON = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_MPI_TYPE": "none"}


def one_row(done: CompletedProcess[str], area: str, name: str) -> dict[str, str]:
    (row,) = (r for r in json.loads(done.stdout)["rows"] if (r["area"], r["name"]) == (area, name))
    return dict(row)


def test_a_job_that_can_run(launch: "Launch", tmp_path: Path) -> None:
    done = launch(4, "check", "digits", "--output", "new/run", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    areas = [line[9:].split()[0] for line in lines[:-1] if line[:1].strip()]
    assert list(dict.fromkeys(areas)) == AREAS
    for told in ("4 ranks", "4 groups of 1 rank", "GB/s", "is seen by rank 1", "4,810 values"):
        assert told in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_group_averages_as_the_recipe_would(launch: "Launch", tmp_path: Path) -> None:
    pytest.importorskip("horovod", reason="Horovod is not installed")
    (tmp_path / "mine.toml").write_text(RECIPE.format(ranks_per_group=2))
    done = launch(2, "check", "mine.toml", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "MPI: yes" in one_row(done, "averaging", "horovod")["finding"]
    group = one_row(done, "averaging", "group")
    assert group["status"] == "ok"
    assert group["finding"].startswith("by horovod: ")
    assert "GB/s" in one_row(done, "network", "a group")["finding"]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_a_job_that_cannot_run_fails_on_every_rank_with_remedies(
    launch: "Launch", tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(RECIPE.format(ranks_per_group=3))
    (tmp_path / "file").touch()
    done = launch(4, "check", "mine.toml", "--output", "file/run", "--json", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    report = json.loads(done.stdout)
    assert (report["ok"], report["ranks"]) == (False, 4)
    wrong = [row for row in report["rows"] if row["status"] != "ok"]
    assert all(row["remedy"] for row in wrong)
    assert "start 3 or 6 ranks" in one_row(done, "groups", "number")["remedy"]
    assert "file is a file" in one_row(done, "output", "folder")["finding"]
    assert one_row(done, "task", "task")["status"] == "ok"  # the other checks went on


def test_without_a_recipe_torch_is_not_imported(launch: "Launch", tmp_path: Path) -> None:
    """In a batch script that forgot its launcher, which is told."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('torch was imported')")
    (tmp_path / "torch" / "version.py").write_text("cuda: str | None = None\n")
    batch = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    done = launch(0, "check", "--json", cwd=tmp_path, env=batch | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stdout + done.stderr
    assert one_row(done, "ranks", "nodes")["finding"] == "1 node"
    assert one_row(done, "ranks", "launcher")["remedy"] == "start esgd by srun to use them"
    assert "ESGD_END_TIME" in one_row(done, "job", "time")["remedy"]


@pytest.mark.parametrize(
    ("command", "rank", "status"), [("check", "0", 1), ("run", "0", 2), ("run", "3", 2)]
)
def test_ranks_that_do_not_see_each_other_are_refused(
    launch: "Launch", tmp_path: Path, command: str, rank: str, status: int
) -> None:
    """What `srun --mpi=none` does with Open MPI: so many worlds of one rank. Task 0 says so."""
    environment = SINGLETON | {"SLURM_PROCID": rank}
    done = launch(0, command, "digits", "--output", "out", env=environment, cwd=tmp_path)
    assert done.returncode == status
    told = " ".join((done.stdout + done.stderr).split())
    if rank == "0":
        assert "srun started 4 tasks (SLURM_STEP_NUM_TASKS = 4)" in told
        assert "of 1 rank" in told
        assert "--mpi=" in told
    else:
        assert told == ""
    assert list(tmp_path.iterdir()) == []
