"""Whatever happens to the files of a run: verify tells it, and the run ends as if it had not.

A run of two groups that nobody disturbed is copied, damaged, verified, inspected, and started
again. It goes on from the newest generation that is whole and ends with the same digest.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from esgd_hpc.checkpoint.reader import open_checkpoint, population_digest
from esgd_hpc.checkpoint.verify import verify_checkpoint

if TYPE_CHECKING:
    from conftest import Launch

RECIPE = """
task = "digits"
seed = 3
generations = 4

[task_options]
hidden = 4

[population]
parents = 4
offspring = 6
initialization = "perturb"

[[sgd.optimizers]]
name = "sgd"
learning_rate = [0.02, 0.2]

[checkpoint]
keep = 3
"""

FORMAT_1 = Path(__file__).parents[1] / "data" / "format_1"
"""Two groups, written by format 1 and stopped after generation 2 of 4."""
READ_DIGEST = "4d1cdaa9ff088e000e84d7dbcb7a48c2ebb9eb7db70117a81de416512ed7927f"
"""Of what is in it, on any processor."""
TRAINED_BEST = [2.0747082233428955, 1.8764922618865967]
"""Fitness of the best in generations 3 and 4; last bits differ between processors."""


class Whole(NamedTuple):
    """The run that nobody disturbed, with generations 2 to 4, and its recipe."""

    run: Path
    recipe: Path
    digest: str


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    recipe, run = folder / "recipe.toml", folder / "run"
    recipe.write_text(RECIPE)
    mpiexec = [os.environ.get("ESGD_MPIEXEC", "mpiexec"), "-n", "2"]
    esgd = [sys.executable, "-m", "esgd_hpc"]
    command = [*mpiexec, *esgd, "run", str(recipe), "--output", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return Whole(run, recipe, digest(run))


def digest(run: Path) -> str:
    """Return the digest of the newest generation, as `esgd inspect` shows it."""
    return population_digest(open_checkpoint(run))


# ---------------------------------------------------------------- damage


def flip(path: Path, offset: int) -> None:
    """Invert a byte."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


def owned(generation: Path, leader: int) -> list[int]:
    """Return whose weights a leader's file has."""
    return [uid for uid, group in open_checkpoint(generation).owner.items() if group == leader]


def truncate(generation: Path) -> list[str]:
    os.truncate(generation / "leader_00001.h5", 3000)
    uids = ", ".join(map(str, owned(generation, 1)))
    return [
        "leader_00001.h5: 3000 bytes instead of",
        f"leader_00001.h5: the weights of individuals {uids} are in it",
    ]


def flip_weights(generation: Path) -> list[str]:
    uid = owned(generation, 1)[1]
    weights = open_checkpoint(generation).read_weights([uid])[uid].tobytes()
    leader = generation / "leader_00001.h5"
    flip(leader, leader.read_bytes().index(weights) + 500)
    return [
        "leader_00001.h5: damaged: CRC-32 ",
        f"leader_00001.h5: the weights of individual {uid} are damaged",
    ]


def flip_metadata(generation: Path) -> list[str]:
    population = generation / "population.h5"
    flip(population, population.read_bytes().index(b'"optimizer": "sgd"'))
    return ["population.h5: damaged: CRC-32 "]


def lose_leader(generation: Path) -> list[str]:
    uids = ", ".join(map(str, owned(generation, 0)))
    (generation / "leader_00000.h5").unlink()
    return [
        "leader_00000.h5: missing",
        f"leader_00000.h5: the weights of individuals {uids} are in it",
    ]


def lose_commit(generation: Path) -> list[str]:
    (generation / "COMMIT.json").unlink()
    return ["COMMIT.json: missing, so the checkpoint is not complete"]


def make_newer(generation: Path) -> list[str]:
    """Let the newest generation be from a version of esgd to come."""
    commit = generation / "COMMIT.json"
    commit.write_text(json.dumps({"format": 99, "files": "all"}))
    return ["COMMIT.json: format 99, but this esgd reads formats up to 2; use the esgd that wrote"]


class Case(NamedTuple):
    """What happens to which generations, and whether `inspect` notices before it reads weights."""

    damage: dict[int, Callable[[Path], list[str]]]
    shown: int | str
    """The generation that `esgd inspect` shows, or what it says instead."""


CASES = {
    "truncated file": Case({4: truncate}, 3),
    "flipped byte in weights": Case({4: flip_weights}, "are damaged"),
    "flipped byte in metadata": Case({4: flip_metadata}, "damaged: population.h5"),
    "missing leader file": Case({4: lose_leader}, 3),
    "missing COMMIT.json": Case({4: lose_commit}, 3),
    "two newest damaged": Case({4: truncate, 3: flip_weights}, "are damaged"),
    "newer format": Case({4: make_newer}, 3),
}


@pytest.mark.parametrize("name", CASES)
def test_damage_is_told_and_the_run_ends_as_if_there_were_none(
    launch: "Launch", tmp_path: Path, whole: Whole, name: str
) -> None:
    case = CASES[name]
    run = tmp_path / "run"
    shutil.copytree(whole.run, run, symlinks=True)
    told = {number: hurt(run / f"gen_{number:06d}") for number, hurt in case.damage.items()}

    report = verify(launch, run, status=1)
    for generation in report["generations"]:
        expected = told.get(int(generation["folder"].removeprefix("gen_")), [])
        assert generation["ok"] == (not expected)
        assert len(generation["problems"]) == len(expected)
        for problem, part in zip(generation["problems"], expected, strict=True):
            assert part in problem
    assert report["problems"] == report["notes"] == []

    shown = launch(0, "inspect", run, "--json")
    if isinstance(case.shown, str):
        assert shown.returncode == 2
        assert case.shown in shown.stderr
        assert "Traceback" not in shown.stderr
    else:
        assert json.loads(shown.stdout)["generation"] == case.shown

    done = launch(0, "run", whole.recipe, "--output", run)
    assert done.returncode == 0, done.stderr
    for number, parts in told.items():
        assert f"gen_{number:06d} is skipped: " in done.stdout
        assert parts[0] in done.stdout
    goes_on = 4 - len(told)
    assert f"gen_{goes_on:06d} is verified; going on from generation {goes_on}" in done.stdout
    assert digest(run) == whole.digest
    assert verify_checkpoint(run / "gen_000004") == []


def test_a_link_to_nowhere_matters_to_nobody(
    launch: "Launch", tmp_path: Path, whole: Whole
) -> None:
    """The newest generation is gone, and its link, a folder that was not finished, are left."""
    run = tmp_path / "run"
    shutil.copytree(whole.run, run, symlinks=True)
    (run / "gen_000004").rename(run / "gen_000004.tmp")
    assert not (run / "latest").exists()
    report = verify(launch, run, status=0)
    assert report["notes"] == [
        "latest names a generation that is gone; nothing depends on it",
        "gen_000004.tmp was not finished; the next checkpoint deletes it",
    ]
    done = launch(2, "run", whole.recipe, "--output", run)
    assert done.returncode == 0, done.stderr
    assert "gen_000003 is verified; going on from generation 3" in done.stdout
    assert digest(run) == whole.digest
    assert (run / "latest").resolve().name == "gen_000004"
    assert not (run / "gen_000004.tmp").exists()


def test_a_run_of_format_1_is_read_and_goes_on(launch: "Launch", tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(FORMAT_1, run, symlinks=True)
    assert verify(launch, run, status=0)["generations"] == [
        {"folder": "gen_000002", "ok": True, "problems": [], "lost": []}
    ]
    found = json.loads(launch(0, "inspect", run, "--json").stdout)
    assert (found["generation"], found["groups"], found["digest"]) == (2, 2, READ_DIGEST)
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged, symlinks=True)
    told = flip_weights(damaged / "gen_000002")
    assert verify(launch, damaged, status=1)["generations"][0]["problems"][1] == told[1]
    done = launch(0, "run", FORMAT_1 / "recipe.toml", "--output", run)
    assert done.returncode == 0, done.stderr
    assert "gen_000002 is verified; going on from generation 2" in done.stdout
    found = json.loads(launch(0, "inspect", run, "--json").stdout)
    assert found["history"]["best"][3:] == pytest.approx(TRAINED_BEST, rel=1e-4)
    # Which bits are right on this processor says another number of groups.
    again = tmp_path / "again"
    shutil.copytree(FORMAT_1, again, symlinks=True)
    assert launch(2, "run", FORMAT_1 / "recipe.toml", "--output", again).returncode == 0
    assert digest(run) == digest(again)
    assert verify(launch, run, status=0)["ok"]


# ---------------------------------------------------------------- commands


def verify(launch: "Launch", run: Path, status: int) -> dict[str, Any]:
    """Return what `esgd verify --json` says."""
    done = launch(0, "verify", run, "--json")
    assert done.returncode == status, (done.stdout, done.stderr)
    report: dict[str, Any] = json.loads(done.stdout)
    return report
