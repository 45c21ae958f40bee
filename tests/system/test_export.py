"""`esgd export --check-fitness` of runs under mpiexec: the recorded fitness, to the last bit."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open

if TYPE_CHECKING:
    from conftest import Launch

TASK = """
import torch
from torch import nn
from esgd_hpc import ClassificationTask

class Norms(ClassificationTask):
    def __init__(self):
        stream = torch.Generator().manual_seed(5)
        x = torch.randn(170, 6, generator=stream) * 2 + 1
        y = (x[:, :3].sum(dim=1) > x[:, 3:].sum(dim=1)).long()
        super().__init__(training=(x[:101], y[:101]), validation=(x[101:], y[101:]))

    def model(self):
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

def task():
    return Norms()
"""

RECIPE = """
task = "norms:task"
generations = 3
[population]
parents = 6
offspring = 9
[sgd]
batch_size = 16
[[sgd.optimizers]]
name = "sgd"
learning_rate = [0.01, 0.5]
[evolution]
mutation_strength = 0.05
[fitness]
batch_size = 16
[topology]
device = "cpu"
"""


@pytest.fixture
def norms(tmp_path: Path) -> Path:
    """Write a task with BatchNorm and its recipe, and return the folder."""
    (tmp_path / "norms.py").write_text(TASK)
    (tmp_path / "norms.toml").write_text(RECIPE)
    return tmp_path


@pytest.mark.parametrize(
    "settings",
    [
        ['evolution.batchnorm="recalibrate"'],
        ["topology.ranks_per_group=2", 'topology.gradient_averaging="mpi"'],
    ],
)
def test_one_process_gives_the_fitness_that_two_ranks_recorded(
    launch: "Launch", norms: Path, settings: list[str]
) -> None:
    words = [word for setting in settings for word in ("--set", setting)]
    done = launch(2, "run", "norms.toml", *words, "--output", "run", cwd=norms)
    assert done.returncode == 0, done.stderr
    shown = json.loads(launch(0, "inspect", "run", "--json", cwd=norms).stdout)
    worst = max(shown["population"], key=lambda i: i["fitness"])

    def export(individual: str, name: str) -> str:
        words = ("--individual", individual, "--output", name, "--check-fitness")
        done = launch(0, "export", "run", *words, cwd=norms)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    best, last = repr(shown["best"]["fitness"]), repr(worst["fitness"])
    assert f"fitness {best}, recorded {best}: equal to the last bit" in export("best", "best.pt")
    text = export(str(worst["uid"]), "worst.safetensors")
    assert f"fitness {last}, recorded {last}: equal to the last bit" in text
    text = export("elite", "elite.pt")
    assert f"the best, individual {shown['best']['uid']}, has {best}" in text
    # Plain torch and safetensors read what the files say of themselves.
    state = torch.load(norms / "best.pt", weights_only=True)
    assert state._metadata[".esgd"]["fitness"] == best
    with safe_open(norms / "worst.safetensors", "pt") as file:
        assert file.metadata()["fitness"] == last


def test_a_check_without_the_task_is_bad_input_with_the_remedy(
    launch: "Launch", norms: Path
) -> None:
    assert launch(0, "run", "norms.toml", "--output", "run", cwd=norms).returncode == 0
    elsewhere = norms / "elsewhere"
    elsewhere.mkdir()
    words = ("export", norms / "run", "--output", "best.pt")
    refused = launch(0, *words, "--check-fitness", cwd=elsewhere)
    assert refused.returncode == 2
    assert "no module named norms; start in the folder that holds it" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not list(elsewhere.iterdir())
    assert launch(0, *words, cwd=elsewhere).returncode == 0
