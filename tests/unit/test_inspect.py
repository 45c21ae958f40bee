"""What `esgd inspect`, `verify` and `recipes` print and return."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from esgd_hpc.checkpoint.reader import open_checkpoint, population_digest
from esgd_hpc.commands import inspect, recipes, verify
from esgd_hpc.config import recipe_data
from esgd_hpc.errors import InputError
from esgd_hpc.recipe_file import recipe_names
from unit.test_checkpoint import (
    DAMAGE,
    make_individual,
    make_layout,
    make_population,
    make_recipe,
    write,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run of generations 1 and 2."""
    write(tmp_path / "run", 1)
    write(tmp_path / "run", 2)
    return tmp_path / "run"


def called(module: Any, run: Path, capsys: pytest.CaptureFixture[str], **arguments: Any) -> str:
    """Run a command that succeeds and return what it printed."""
    options = ("generation", "individual", "ancestry", "compare", "depth", "output")
    defaults = {"run": str(run), "json": False, **dict.fromkeys(options)}
    assert module.execute(argparse.Namespace(**(defaults | arguments))) == 0
    return capsys.readouterr().out


# ---------------------------------------------------------------- inspect


def test_json_is_the_object_that_scripts_rely_on(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = json.loads(called(inspect, run, capsys, json=True))
    population = make_population(5, make_layout(), generation=2)
    best = make_individual(2)
    assert list(shown) == [
        "recipe",
        "generation",
        "generations",
        "ranks",
        "ranks_per_group",
        "groups",
        "digest",
        "best",
        "population",
        "history",
        "theorem_1_holds",
        "underway",
        "changes",
    ]
    assert shown["recipe"] == recipe_data(make_recipe())
    assert (shown["generation"], shown["generations"]) == (2, make_recipe().last_generation)
    assert (shown["ranks"], shown["ranks_per_group"], shown["groups"]) == (1, 1, 1)
    assert shown["digest"] == population_digest(open_checkpoint(run))
    assert shown["best"] == {
        "uid": best.uid,
        "fitness": best.fitness,
        "metrics": best.metrics,
        "optimizer": {
            "name": "sgd",
            "learning_rate": 0.1 / 3,
            "momentum": 0.0,
            "nesterov": False,
            "weight_decay": 0.0,
            "batch_size": 128,
            "hyperparameters": {"dropout": 0.25, "layers": 2, "tied": True, "cell": "gru"},
        },
        "in_population": True,
    }
    assert shown["theorem_1_holds"] is False
    change = {"generation": 1, "key": "sgd.epochs", "old": "1", "new": "[1, 2]"}
    assert shown["changes"] == [change]
    told = called(inspect, run, capsys)
    assert "changed     after generation 1: sgd.epochs: 1 -> [1, 2]" in told
    assert [member["uid"] for member in shown["population"]] == [2, 5, 8, 11, 14]
    for member, individual in zip(shown["population"], population.individuals, strict=True):
        assert set(member) == {
            "uid", "fitness", "parents", "born", "metrics", "origin", "optimizer", "seconds",
        }  # fmt: skip
        assert member["parents"] == list(individual.parents)
        assert member["origin"] == individual.origin
        assert (member["optimizer"] is None) == (individual.draw is None)
    assert shown["history"] == {
        "generation": [0, 1, 2],
        "best": [1.0, 1 / 2, 1 / 3],
        "elite_average": [2.0, 1.0, 2 / 3],
        "median": [3.0, 1.5, 1.0],
        "worst": [None, 4.0, 4.0],
        "elite_offspring_fraction": [0.25, 0.25, 0.25],
        "best_ever": [0.5, 0.5 / 2, 0.5 / 3],
        "lower_quartile": [2.5, 2.5 / 2, 2.5 / 3],
        "upper_quartile": [3.5, 3.5 / 2, 3.5 / 3],
        "diversity": [0.5, 1.5, 2.5],
    }


def test_what_json_does_not_have_is_null(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Among them the fitness of an individual that failed."""
    shown = json.loads(called(inspect, run, capsys, json=True), parse_constant=pytest.fail)
    fitness = {member["uid"]: member["fitness"] for member in shown["population"]}
    expected = {uid: 1.0 / 3.0 + uid for uid in (2, 5, 11, 14)}
    assert fitness == {**expected, 8: None}


def test_text_shows_run_history_and_population_by_fitness(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = called(inspect, run, capsys)
    for line in (
        "task        digits",
        "method      esgd",
        "generation  2 of 8",
        "ranks       1: 1 groups of 1",
        "best        individual 2, fitness 2.33333, error_rate 0.2857",
    ):
        assert line in text.splitlines()
    assert population_digest(open_checkpoint(run)) in text
    assert "rose in generation 2" in text
    table = text.splitlines()[-5:]
    assert [row.split()[0] for row in table] == ["2", "5", "11", "14", "8"]
    assert "inf" in table[-1]


def test_text_cannot_control_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "\x1b" in make_individual(8).failure
    text = called(inspect, run, capsys)
    assert "loss is nan" in text
    assert all(character.isprintable() for line in text.splitlines() for character in line)


def test_tables_of_large_runs_are_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, 30, num_parents=50)
    text = called(inspect, tmp_path, capsys)
    assert len(text.splitlines()) < 60
    assert "11 generations before: --json" in text
    assert "30 more individuals: --json" in text


def test_another_generation(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(called(inspect, run, capsys, json=True, generation=1))["generation"] == 1
    shown = json.loads(called(inspect, run / "gen_000001", capsys, json=True))
    assert shown["generation"] == 1
    with pytest.raises(InputError, match="no generation 3 in this folder; it has 1, 2"):
        called(inspect, run, capsys, generation=3)


def test_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for module in (inspect, verify):
        with pytest.raises(InputError, match="no checkpoint in this folder"):
            called(module, tmp_path, capsys)
        with pytest.raises(InputError, match="no such folder"):
            called(module, tmp_path / "none", capsys)


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_never_a_traceback(
    run: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    DAMAGE[case][0](run / "gen_000002")
    try:
        shown = json.loads(called(inspect, run, capsys, json=True))
    except InputError:
        return
    assert shown["generation"] == 1 or case in ("needless", "number")


# ---------------------------------------------------------------- verify


def test_verify_names_the_damage(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(verify, run, capsys).splitlines() == ["gen_000002  ok", "gen_000001  ok"]
    DAMAGE["weights"][0](run / "gen_000002")
    arguments = argparse.Namespace(run=str(run), json=False)
    assert verify.execute(arguments) == 1
    out = capsys.readouterr().out
    assert "gen_000002  DAMAGED" in out
    assert "the weights of individual 8 are damaged" in out
    assert "gen_000001  ok" in out
    assert called(verify, run / "gen_000001", capsys) == "gen_000001  ok\n"


def test_verify_for_programs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "latest").unlink()
    (run / "latest").symlink_to("gone")
    (run / "gen_000003.tmp").mkdir()
    report = json.loads(called(verify, run, capsys, json=True))
    assert report["ok"] is True
    assert report["generations"][0] == {
        "folder": "gen_000002",
        "ok": True,
        "problems": [],
        "lost": [],
    }
    assert [note.split()[0] for note in report["notes"]] == ["latest", "gen_000003.tmp"]
    (run / "history.h5").write_bytes(b"not HDF5")
    assert verify.execute(argparse.Namespace(run=str(run), json=True)) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert "history.h5: damaged, or not a file of esgd" in report["problems"][0]


# ---------------------------------------------------------------- recipes


def test_recipes_are_listed_with_their_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipes.execute(argparse.Namespace()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert "digits" in recipe_names()
    assert all(len(line.split()) > 2 for line in lines)


# ---------------------------------------------------------------- cost


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_looking_at_a_run_loads_neither_torch_nor_mpi(run: Path, command: str) -> None:
    program = """
        import importlib, sys
        from esgd_hpc.cli import parser
        command = importlib.import_module("esgd_hpc.commands." + sys.argv[1])
        assert "numpy" not in sys.modules
        status = command.execute(parser().parse_args([*sys.argv[1:], "--json"]))
        assert not {"torch", "mpi4py"} & sys.modules.keys()
        sys.exit(status)
    """
    program = "\n".join(line.strip() for line in program.splitlines())
    subprocess.run([sys.executable, "-c", program, command, str(run)], check=True, timeout=60)
