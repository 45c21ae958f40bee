"""`esgd export` writes what plain torch loads, with what it is, and can score it again."""

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors
import torch
from mpi4py import MPI
from torch import nn

from esgd_hpc.api import run as train
from esgd_hpc.checkpoint import export
from esgd_hpc.checkpoint.export import (
    METADATA_KEY,
    average_weights,
    state_dict_arrays,
    vector_from,
    write_state_dict,
)
from esgd_hpc.checkpoint.reader import Checkpoint, open_checkpoint, weights_digest
from esgd_hpc.cli import main
from esgd_hpc.config import Recipe
from esgd_hpc.evolution.operators import recombine
from esgd_hpc.genome import Genome
from esgd_hpc.history import History, RecipeChange
from esgd_hpc.learner.network import NetworkLearner
from esgd_hpc.parallel.averaging.single import SingleAveraging
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import Weights, fittest
from esgd_hpc.recipe_file import recipe_from
from esgd_hpc.rescore import open_rescorer
from esgd_hpc.tasks import load_task
from unit.test_checkpoint import (
    make_history,
    make_layout,
    make_population,
    make_weights,
    write,
    write_checkpoint,
)

FORMAT_1 = Path(__file__).parents[1] / "data" / "format_1"
ENDINGS = ("safetensors", "pt")


def read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the arrays and the metadata of an export, as the module's docstring says."""
    if path.suffix == ".pt":
        state = torch.load(path, weights_only=True)
        return {name: t.numpy() for name, t in state.items()}, state._metadata[METADATA_KEY]
    with safetensors.safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Run an export that is refused as bad input and return what it says."""
    assert main(["export", *map(str, words)]) == 2
    return capsys.readouterr().err


# ---------------------------------------------------------------- a population of all bits


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run of generations 1 and 2; uids 2 to 14 in the latter, of which 8 failed."""
    write(tmp_path / "run", 1)
    write(tmp_path / "run", 2)
    return tmp_path / "run"


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_best_with_all_that_is_known_of_it(
    run: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    path = run.parent / f"best.{ending}"
    assert main(["export", str(run), "--output", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: individual 2 of generation 2, fitness 2.33333\n"
    arrays, described = read(path)
    vector = make_weights(2, make_layout())
    assert described.pop("esgd_version")
    assert described == {
        "format": "pt",
        "what": "best",
        "uids": "[2]",
        "fitness": repr(7 / 3),
        "metrics": json.dumps({"error_rate": 2 / 7}),
        "generation": "2",
        "task": "digits",
        "method": "esgd",
        "checkpoint_format": "2",
        "weights_sha256": weights_digest([vector]),
    }
    assert arrays["encoder.weight"].tobytes() == vector[:12].tobytes()
    assert arrays["decoder.weight"].tobytes() == vector[:12].tobytes()
    assert arrays["norm.num_batches_tracked"].dtype == np.int64
    assert arrays["mask"].dtype == np.bool_
    assert sorted(p.name for p in run.parent.iterdir()) == [path.name, "run"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_any_individual_of_any_generation(run: Path, ending: str) -> None:
    path = run.parent / f"one.{ending}"
    words = ("--individual", "7", "--generation", "1", "--output", str(path))
    assert main(["export", str(run), *words]) == 0
    arrays, described = read(path)
    assert arrays["encoder.weight"].tobytes() == make_weights(7, make_layout())[:12].tobytes()
    expected = {"what": "individual", "uids": "[7]", "generation": "1", "fitness": repr(1 / 3 + 7)}
    assert expected.items() <= described.items()


def test_tied_tensors_of_a_pt_file_share_their_memory(run: Path) -> None:
    path = run.parent / "best.pt"
    assert main(["export", str(run), "--output", str(path)]) == 0
    tensors = torch.load(path, weights_only=True)
    assert tensors["decoder.weight"].data_ptr() == tensors["encoder.weight"].data_ptr()


@pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")  # NaNs and infinities
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_elite_is_recombined_as_parents_are_and_has_none_that_failed(
    run: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    path = run.parent / f"elite.{ending}"
    assert main(["export", str(run), "--individual", "elite", "--output", str(path)]) == 0
    told = "average of the elite of generation 2: individuals 2, 5, 11, 14"
    assert capsys.readouterr().out == f"{path}: {told}\n"
    layout, uids = make_layout(), [2, 14, 5, 11]  # the fittest first: its integers
    expected = np.empty(layout.size, dtype=np.float32)
    recombine([make_weights(uid, layout) for uid in uids], uids, layout, expected)
    arrays, described = read(path)
    assert arrays["encoder.bias"].tobytes() == expected[12:16].tobytes()
    assert arrays["norm.running_mean"].tobytes() == expected[17:21].tobytes()
    assert arrays["norm.num_batches_tracked"].tobytes() == make_weights(2, layout)[21:23].tobytes()
    assert described["what"] == "average of the elite"
    assert described["uids"] == "[2, 5, 11, 14]"
    assert described["weights_sha256"] == weights_digest([expected])
    assert not {"fitness", "metrics"} & described.keys()


def test_an_elite_that_failed_has_no_average(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "run", 4, num_parents=1)
    words = ("--individual", "elite", "--output", tmp_path / "elite.pt")
    assert "every individual of generation 4 failed" in refused(capsys, tmp_path / "run", *words)
    assert not (tmp_path / "elite.pt").exists()


@pytest.mark.parametrize("fittest_uid", [1, 7, 13])
def test_an_average_holds_two_vectors_however_many_are_averaged(
    tmp_path: Path, fittest_uid: int
) -> None:
    layout = make_layout(hidden=2**19)
    population = make_population(5, layout)
    stream = np.random.default_rng(3)
    population.weights = {
        i.uid: stream.standard_normal(layout.size, dtype=np.float32) for i in population.individuals
    }
    topology = Topology(MPI.COMM_SELF, 1)
    write_checkpoint(tmp_path, population, layout, make_history(2), topology)
    topology.close()
    uids = [fittest_uid, *sorted(population.weights.keys() - {fittest_uid}, reverse=True)]
    expected = np.empty(layout.size, dtype=np.float32)
    recombine([population.weights[uid] for uid in uids], uids, layout, expected)
    population.weights = {}
    checkpoint = open_checkpoint(tmp_path)
    tracemalloc.start()
    average = average_weights(checkpoint, uids, fittest_uid)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert average.tobytes() == expected.tobytes()
    assert peak < 2 * average.nbytes + 9 * 2**20  # and two pieces of 4 MiB


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"output": "best.npz"}, "must end in .safetensors or .pt"),
        ({"output": "none/best.pt"}, "does not exist; make it first"),
        (
            {"individual": "99"},
            "99: not in generation 2; `best` (which is 2), `elite`, or one of 2",
        ),
        ({"individual": "worst"}, "--individual worst"),
        ({"individual": "-1"}, "--individual"),
        ({"generation": "7"}, "no generation 7 in this folder; it has 1, 2"),
    ],
)
def test_what_cannot_be_exported(
    run: Path, capsys: pytest.CaptureFixture[str], arguments: dict[str, str], told: str
) -> None:
    arguments = {"output": "best.pt"} | arguments
    arguments["output"] = str(run.parent / arguments["output"])
    words = [word for name, value in arguments.items() for word in (f"--{name}", value)]
    assert told in refused(capsys, run, *words)
    assert [p.name for p in run.parent.iterdir()] == ["run"]


def test_the_format_before_this_one_is_exported(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(FORMAT_1)
    for individual in ("best", "elite"):
        path = tmp_path / f"{individual}.safetensors"
        words = ("--individual", individual, "--output", str(path))
        assert main(["export", str(FORMAT_1), *words]) == 0
        arrays, described = read(path)
        vector = vector_from(checkpoint.layout, arrays, "test")
        assert weights_digest([vector]) == described["weights_sha256"]
        assert described["checkpoint_format"] == "1"


# ---------------------------------------------------------------- the metadata of a .pt file


class Named(nn.Module):
    """A network with modules of names for which an entry of ours could be taken.

    BatchNorm reads a version from what is kept under its name.
    """

    def __init__(self) -> None:
        super().__init__()
        for name in ("esgd", "_metadata", "fitness", "version"):
            self.add_module(name, nn.BatchNorm1d(3))
        self.inner = nn.Sequential()
        self.inner.add_module("esgd", nn.BatchNorm1d(3))


def test_load_state_dict_is_not_touched_by_the_metadata(tmp_path: Path) -> None:
    genome = Genome(Named())
    genome.flat.uniform_()
    arrays = state_dict_arrays(genome.layout, genome.store())
    described = {"version": "9", "fitness": "0.25"}
    write_state_dict(tmp_path / "named.pt", arrays, described)
    state = torch.load(tmp_path / "named.pt", weights_only=True)
    for assign in (False, True):
        model = Named()
        assert not any(model.load_state_dict(state, strict=True, assign=assign))
        for name, tensor in model.state_dict().items():
            assert np.array_equal(tensor.numpy(), arrays[name])
        assert state._metadata == {METADATA_KEY: described}


def test_no_module_can_have_the_name_of_the_metadata() -> None:
    with pytest.raises(KeyError, match="module name can"):
        nn.Module().add_module(METADATA_KEY, nn.Linear(1, 1))


# ---------------------------------------------------------------- runs of a task with BatchNorm

TASK = """
import torch
from torch import nn
from esgd_hpc import ClassificationTask

SHIFT = 0.0

class Norms(ClassificationTask):
    def __init__(self, hidden):
        stream = torch.Generator().manual_seed(5)
        x = torch.randn(150, 6, generator=stream) * 2 + 1
        y = (x[:, :3].sum(dim=1) > x[:, 3:].sum(dim=1)).long()
        super().__init__(training=(x[:100], y[:100]), validation=(x[100:] + SHIFT, y[100:]))
        self.hidden = hidden

    def model(self):
        h = self.hidden
        return nn.Sequential(nn.Linear(6, h), nn.BatchNorm1d(h), nn.ReLU(), nn.Linear(h, 2))

def task(hidden=8):
    return Norms(hidden)
"""


def recipe(**evolution: Any) -> Recipe:
    return recipe_from(
        {
            "task": "task_of_norms:task",
            "generations": 3,
            "population": {"parents": 8, "offspring": 12},
            "evolution": {"mutation_strength": 0.05, **evolution},
            "fitness": {"batch_size": 16},
            "sgd": {
                "batch_size": 16,
                "backoff_probability": 1.0 if evolution else 0.0,
                "optimizers": [{"name": "sgd", "learning_rate": [0.01, 1.0]}],
            },
            "topology": {"device": "cpu"},
        }
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with the task and its runs: average, recalibrate, and lost."""
    folder = tmp_path_factory.mktemp("norms")
    (folder / "task_of_norms.py").write_text(TASK)
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        patch.setattr(sys, "dont_write_bytecode", True)
        for name, settings in (
            ("average", {"batchnorm": "average"}),
            ("recalibrate", {"batchnorm": "recalibrate", "recalibration_batches": 3}),
            ("lost", {}),  # never backs off, so that the best gets worse
        ):
            train(recipe(**settings), MPI.COMM_SELF, output=folder / name)
        yield folder
    for name in set(os.environ) - before.keys():
        if name.startswith(("KMP_", "TORCHINDUCTOR_")):  # set by torch, on import
            del os.environ[name]
    sys.modules.pop("task_of_norms", None)


@pytest.fixture
def task_module(runs: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Go to where the task is, as its user would, and return its module."""
    monkeypatch.chdir(runs)
    return sys.modules["task_of_norms"]


def one_rank(checkpoint: Checkpoint) -> NetworkLearner:
    task = load_task("task_of_norms:task", {})
    settings = recipe_from(checkpoint.recipe)
    return NetworkLearner(task, settings, SingleAveraging(), torch.device("cpu"))


def plain_average(checkpoint: Checkpoint, uids: list[int]) -> Weights:
    """Return what `recombine` makes of the elite, with the fittest as the first parent."""
    first = fittest(checkpoint.individuals).uid
    order = [first, *(uid for uid in uids if uid != first)]
    weights = checkpoint.read_weights(order)
    out = np.empty(checkpoint.layout.size, dtype=np.float32)
    recombine([weights[uid] for uid in order], order, checkpoint.layout, out)
    return out


@pytest.mark.usefixtures("task_module")
@pytest.mark.parametrize("batchnorm", ["average", "recalibrate"])
def test_every_individual_has_its_recorded_fitness_to_the_last_bit(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], batchnorm: str
) -> None:
    checkpoint = open_checkpoint(runs / batchnorm)
    assert {i.origin for i in checkpoint.individuals} == {"sgd", "offspring"}
    asked = {"best": checkpoint.best()} | {str(i.uid): i for i in checkpoint.individuals}
    for place, (individual, record) in enumerate(asked.items()):
        path = tmp_path / f"{individual}.{ENDINGS[place % 2]}"
        words = ["--individual", individual, "--output", str(path), "--check-fitness"]
        assert main(["export", str(runs / batchnorm), *words]) == 0
        fitness = repr(record.fitness)
        told = f"fitness {fitness}, recorded {fitness}: equal to the last bit"
        assert capsys.readouterr().out.splitlines()[1:] == [told]
        assert read(path)[1]["fitness"] == fitness


@pytest.mark.usefixtures("task_module")
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_best_is_the_fittest_ever_also_when_the_population_has_lost_it(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    checkpoint = open_checkpoint(runs / "lost")
    assert checkpoint.champion is not None
    path = tmp_path / f"best.{ending}"
    assert main(["export", str(runs / "lost"), "--output", str(path), "--check-fitness"]) == 0
    out = capsys.readouterr().out
    assert "the best ever, which the population has lost" in out
    assert out.endswith("equal to the last bit\n")
    arrays, described = read(path)
    assert described["uids"] == f"[{checkpoint.champion.uid}]"
    assert float(described["fitness"]) < min(i.fitness for i in checkpoint.individuals)
    vector = vector_from(checkpoint.layout, arrays, "test")
    assert vector.tobytes() == checkpoint.best_weights().tobytes()


@pytest.mark.usefixtures("task_module")
@pytest.mark.parametrize("batchnorm", ["average", "recalibrate"])
def test_the_elite_has_the_statistics_that_a_child_of_it_would_have(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], batchnorm: str
) -> None:
    checkpoint = open_checkpoint(runs / batchnorm)
    ranked = sorted(checkpoint.individuals, key=lambda i: (i.fitness, i.uid))
    uids = sorted(i.uid for i in ranked[:5])  # round(0.6 * 8)
    average = plain_average(checkpoint, uids)
    learner = one_rank(checkpoint)
    learner.load(average)
    score = learner.score(recalibrate=batchnorm == "recalibrate")
    path = tmp_path / "elite.pt"
    words = ["--individual", "elite", "--output", str(path), "--check-fitness"]
    assert main(["export", str(runs / batchnorm), *words]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith(f"individuals {', '.join(map(str, uids))}")
    best = checkpoint.best()
    assert out[1] == (
        f"fitness {score.fitness!r}, error_rate {score.metrics['error_rate']:.4g};"
        f" the best, individual {best.uid}, has {best.fitness!r}"
    )
    arrays, described = read(path)
    vector = vector_from(checkpoint.layout, arrays, "test")
    assert described["weights_sha256"] == weights_digest([vector])
    parameters = checkpoint.layout.num_parameters
    assert vector[:parameters].tobytes() == average[:parameters].tobytes()
    if batchnorm == "average":
        assert vector.tobytes() == average.tobytes()
    else:
        assert arrays["1.num_batches_tracked"] == 3
        assert not np.array_equal(vector[parameters:], average[parameters:])


@pytest.mark.usefixtures("task_module")
def test_only_a_recalibrated_elite_needs_the_task(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "task_of_norms", None)  # as if there were no such module
    path = tmp_path / "elite.safetensors"
    words = ("--individual", "elite", "--output", path)
    assert main(["export", str(runs / "average"), *map(str, words)]) == 0
    path.unlink()
    told = refused(capsys, runs / "recalibrate", *words)
    assert 'batchnorm = "recalibrate": the average of the elite needs the task' in told
    assert "no module named task_of_norms" in told
    assert "no module named task_of_norms" in refused(
        capsys, runs / "average", "--output", path, "--check-fitness"
    )
    assert not path.exists()


# ---------------------------------------------------------------- another fitness


@pytest.mark.parametrize("ending", ENDINGS)
def test_another_fitness_is_told_with_likely_reasons_and_status_1(
    runs: Path,
    task_module: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
) -> None:
    monkeypatch.setattr(task_module, "SHIFT", 1e-3)  # the data are others
    path = tmp_path / f"best.{ending}"
    assert main(["export", str(runs / "average"), "--output", str(path), "--check-fitness"]) == 1
    out = capsys.readouterr().out.splitlines()
    recorded = open_checkpoint(runs / "average").best().fitness
    assert f", recorded {recorded!r}: they differ by " in out[1]
    computed = float(out[1].split()[1].rstrip(","))
    assert 0.0 < abs(computed - recorded) < 1e-2
    assert out[2] == "what may be the reason:"
    assert any(line.startswith("  task: its code or data may be others now") for line in out)
    assert read(path)[1]["fitness"] == repr(recorded)


@pytest.mark.usefixtures("task_module")
def test_versions_hosts_and_changes_of_the_recipe_are_among_the_reasons(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rescorer = open_rescorer(open_checkpoint(runs / "average"))
    same = rescorer.likely_reasons()
    assert [line.split(":")[0] for line in same] == ["job", "task"]
    changed = RecipeChange(generation=1, key="fitness.batch_size", old="32", new="16")
    elsewhere = msgspec.structs.replace(
        rescorer.checkpoint,
        provenance=rescorer.checkpoint.provenance
        | {"torch": "2.1\x1b[31m", "host": "node-17", "device": "H100"},
        history=History(changes=[changed]),
    )
    told = replace(rescorer, checkpoint=elsewhere).likely_reasons()
    assert any(line.startswith('host: "node-17" in the run, ') for line in told)
    assert any(line.startswith('torch: "2.1\\x1b[31m" in the run, ') for line in told)
    assert 'device: "H100" in the run, "cpu" here' in told
    assert 'recipe: changed during the run: "fitness.batch_size"' in told


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.usefixtures("task_module")
def test_what_is_scored_is_what_the_file_holds(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
) -> None:
    def write_others(path: Path, arrays: dict[str, Any], metadata: dict[str, str]) -> None:
        write_state_dict(path, arrays | {"3.bias": arrays["3.bias"] + [1, 0]}, metadata)

    monkeypatch.setattr(export, "write_state_dict", write_others)
    path = tmp_path / f"best.{ending}"
    assert main(["export", str(runs / "average"), "--output", str(path), "--check-fitness"]) == 1
    assert "they differ by" in capsys.readouterr().out


def test_a_model_that_is_no_longer_that_of_the_run_is_refused(
    runs: Path,
    task_module: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "best.pt"
    monkeypatch.setattr(task_module, "task", lambda: task_module.Norms(9))
    told = refused(capsys, runs / "average", "--output", path, "--check-fitness")
    assert "its model differs from the one in" in told
    assert not path.exists()


def broken(*_: Any) -> None:
    raise ZeroDivisionError("not today")


def test_code_of_the_task_that_raises_is_one_line(
    runs: Path,
    task_module: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["--output", str(tmp_path / "best.pt"), "--check-fitness"]
    monkeypatch.setattr(task_module.Norms, "model", broken)
    assert main(["export", str(runs / "average"), *words]) == 1
    told = "building its model and data: ZeroDivisionError: not today"
    assert capsys.readouterr().err == f'esgd: error: task = "task_of_norms:task": {told}\n'


def test_a_score_that_raises_is_an_infinite_fitness(
    runs: Path,
    task_module: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def score_once(self: Any, model: nn.Module, batch: Any) -> Any:
        return broken() if len(batch[0]) > 1 else original(self, model, batch)

    original = task_module.Norms.score
    monkeypatch.setattr(task_module.Norms, "score", score_once)
    words = ["--output", str(tmp_path / "best.pt"), "--check-fitness"]
    assert main(["export", str(runs / "average"), *words]) == 1
    assert "fitness inf (ZeroDivisionError: not today), recorded 0." in capsys.readouterr().out
    elite = ["--individual", "elite", "--output", str(tmp_path / "elite.pt")]
    assert main(["export", str(runs / "recalibrate"), *elite]) == 1
    assert "estimating BatchNorm statistics: ZeroDivisionError" in capsys.readouterr().err
    assert not (tmp_path / "elite.pt").exists()


# ---------------------------------------------------------------- cost


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (("--individual", "best"), {"torch", "mpi4py"}),
        (("--individual", "elite"), {"torch", "mpi4py"}),
        (("--individual", "best", "--check-fitness"), {"mpi4py"}),
    ],
)
def test_torch_is_loaded_to_score_alone_and_mpi_never(
    runs: Path, tmp_path: Path, words: tuple[str, ...], absent: set[str]
) -> None:
    program = (
        "import sys; from esgd_hpc.cli import main; status = main(sys.argv[2:]);"
        " assert not set(sys.argv[1].split()) & sys.modules.keys(); sys.exit(status)"
    )
    words = ("average", *words, "--output", str(tmp_path / "of.safetensors"))
    subprocess.run(
        [sys.executable, "-B", "-c", program, " ".join(absent), "export", *words],
        check=True,
        timeout=60,
        cwd=runs,
    )
