"""The null task: coordination with nothing to train, which is all that differs from a run."""

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from esgd_hpc.checkpoint.reader import open_checkpoint

if TYPE_CHECKING:
    from conftest import Launch

# With 8 groups of 2 individuals nearly all want the fittest, which is broadcast; the others travel
# from leader to leader while children are scored, and survivors move to where less is to do.
SETTINGS = (
    *("--set", "task_options.parameters=5000", "--set", "generations=3"),
    *("--set", "population.parents=16", "--set", "population.offspring=96"),
    *("--set", "evolution.parents_per_child=[2,3]", "--set", 'evolution.selection="rank"'),
    *("--set", "evolution.smoothing=4.0", "--set", "evolution.steps=2"),
)


def test_the_digest_is_the_same_on_one_to_eight_groups_with_all_of_the_exchange(
    launch: "Launch", tmp_path: Path
) -> None:
    digests, moved = set(), []
    for ranks in (0, 2, 3, 4, 8):
        run = tmp_path / str(ranks)
        done = launch(ranks, "run", "null", *SETTINGS, "--output", run, "--log-level", "debug")
        assert done.returncode == 0, done.stderr
        shown = launch(0, "inspect", str(run), "--json")
        digests.add(json.loads(shown.stdout)["digest"])
        rows = open_checkpoint(run).history.rows[1:]
        moved.append(sum(row.traffic.get("moved", 0) for row in rows))
        least = sum(row.traffic.get("least", 0) for row in rows)
        assert least <= moved[-1] <= 1.05 * least
        for row in rows:
            assert {"planning", "exchange", "making", "scoring"} <= row.seconds.keys()
    assert len(digests) == 1
    assert moved == sorted(set(moved))
    assert moved[0] == 0
    assert re.search(r"[1-9]\d* of them broadcast", done.stderr)


def test_groups_of_two_ranks_need_nothing_to_average_by(launch: "Launch", tmp_path: Path) -> None:
    digests = set()
    for ranks, each in ((2, 1), (4, 2)):
        run = tmp_path / str(ranks)
        more = ("--set", f"topology.ranks_per_group={each}", "--output", str(run))
        done = launch(ranks, "run", "null", *SETTINGS, *more)
        assert done.returncode == 0, done.stderr
        digests.add(json.loads(launch(0, "inspect", str(run), "--json").stdout)["digest"])
    assert len(digests) == 1


@pytest.mark.parametrize("command", ["run", "dry", "check"])
def test_torch_is_never_imported(launch: "Launch", tmp_path: Path, command: str) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text('raise AssertionError("torch was imported")')
    (tmp_path / "torch" / "version.py").write_text('__version__ = "2.13.0"')
    words: dict[str, Any] = {
        "run": ("run", "null", *SETTINGS, "--output", tmp_path / "run"),
        "dry": ("run", "null", "--dry-run", "--ranks", "1024"),
        "check": ("check", "null", "--output", tmp_path / "run"),
    }
    path = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = launch(0 if command == "dry" else 2, *words[command], env=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "null" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("run", "null", "--set", "task_options.parameters=0"), "task_options.parameters = 0: a"),
        (("run", "null", "--set", "task_options.size=5"), "known options: parameters"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    launch: "Launch", tmp_path: Path, words: tuple[str, ...], expected: str
) -> None:
    done = launch(2, *words, "--output", str(tmp_path / "run"))
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_what_needs_a_network_says_that_there_is_none(launch: "Launch", tmp_path: Path) -> None:
    run, path = str(tmp_path / "run"), str(tmp_path / "best.safetensors")
    assert launch(0, "run", "null", *SETTINGS, "--output", run).returncode == 0
    assert launch(0, "export", run, "--output", path).returncode == 0
    done = launch(0, "export", run, "--output", path, "--check-fitness")
    assert done.returncode == 2
    assert 'task = "null" has no network' in done.stderr
