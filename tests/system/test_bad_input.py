"""Bad input: exit status 2, one clear line from all ranks together, no traceback, nothing written.

Most cases run one after another in one process that calls the command line's `main`; a selection
runs under mpiexec on three ranks, where every rank has to leave.
"""

import dataclasses
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Launch

TINY = """\
task = "digits"
generations = 1

[task_options]
hidden = 4

[population]
parents = 3
offspring = 2

[[sgd.optimizers]]
name = "sgd"
learning_rate = 0.1
"""

TASK = """\
import torch
from esgd_hpc.tasks.base import ClassificationTask

class Mine(ClassificationTask):
    def __init__(self, size):
        data = (torch.zeros(8, 2), torch.zeros(8, dtype=torch.int64))
        super().__init__(training=data, validation=data)

    def model(self):
        return {model}

def make(*, size=2):
    return Mine(size)
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """Arguments of `esgd`, the files they meet, and what the message has to say.

    {run} and {weights} stand for a finished run of TINY and an individual exported from it.
    """

    name: str
    argv: tuple[str, ...]
    fragments: tuple[str, ...]
    files: Mapping[str, str | bytes] = dataclasses.field(default_factory=dict)


def command(name: str, argv: str, *fragments: str) -> Case:
    return Case(name, tuple(argv.split()), fragments)


def override(name: str, override: str, *fragments: str) -> Case:
    """Return a case of TINY with one key replaced."""
    return Case(name, ("run", "tiny.toml", "--set", override), fragments)


def recipe(name: str, content: str | bytes, *fragments: str) -> Case:
    return Case(name, ("run", "bad.toml"), ("bad.toml", *fragments), {"bad.toml": content})


def task(name: str, module: str, source: str, *fragments: str, options: str = "") -> Case:
    """Return a case of TINY with a task of the user's; modules have names of their own."""
    text = TINY.replace('"digits"', f'"{module}:make"').replace("hidden = 4", options)
    return Case(name, ("run", "mine.toml"), fragments, {"mine.toml": text, f"{module}.py": source})


COMMAND_LINES = [
    command("no command", "", "a command is missing", "esgd --help"),
    command("unknown command", "trian digits", "'trian'", "'run'"),
    command("missing recipe", "run", "RECIPE", "esgd run --help"),
    command("unknown option", "run tiny.toml --ouput x", "--ouput"),
    command("check of no recipe", "check digit", "did you mean digits?"),
    command("check of a key alone", "check --set seed=2", "--set seed=2", "RECIPE"),
    command("too many recipes", "run tiny.toml other.toml", "other.toml"),
    command("unknown resume", "run tiny.toml --resume maybe", "--resume", "'maybe'", "require"),
    command("unknown log level", "run tiny.toml --log-level loud", "--log-level", "'loud'"),
    command("set without anything", "run tiny.toml --set", "--set", "expected one argument"),
    command("set without value", "run tiny.toml --set seed", "--set seed", "KEY=VALUE"),
    command("set without key", "run tiny.toml --set =3", "--set =3", "KEY=VALUE"),
    command("set with empty value", "run tiny.toml --set seed=", "--set seed=", "TOML"),
    command(
        "set of a text without quotes",
        "run tiny.toml --set task=digits",
        """--set task='"digits"'""",
    ),
    command("set below a value", "run tiny.toml --set task.name=1", "task is a value, not a table"),
    command(
        "set of an entry that is not there",
        "run tiny.toml --set sgd.optimizers.7.weight=1",
        "7 is not one of the 1 entries",
    ),
    command(
        "set of an entry without number",
        "run tiny.toml --set sgd.optimizers.first.weight=1",
        "first is not one of the 1 entries",
    ),
    command("set of many digits", f"run tiny.toml --set seed={'1' * 5000}", "--set seed="),
    command("set of many brackets", f"run tiny.toml --set a={'[' * 2000}", "--set a="),
    command("generation is no number", "inspect {run} --generation two", "--generation", "'two'"),
    command("export to nowhere", "export {run}", "--output"),
]

FILES = [
    recipe("not toml", "task = digits", "not valid TOML", "line 1"),
    recipe("not text", b"\x89HDF\r\n\x1a\n\xff\xfe", "cannot be read as text"),
    recipe("empty", "", "missing", "task"),
    recipe("key twice", "seed = 1\nseed = 2", "not valid TOML"),
    recipe("many brackets", f"seed = {'[' * 2000}{']' * 2000}"),
    recipe("many digits", f"seed = {'1' * 5000}"),
    command("no such file", "run nowhere/at/all.toml", "nowhere/at/all.toml", "no such file"),
    command("nearly a name", "run digit", "no recipe of this name", "did you mean digits?"),
    command("a folder", "run .", "recipe .", "cannot be read"),
    command("a long name", f"run {'x' * 300}", "cannot be read"),
]

KEYS = [
    override("top key", "generation=3", "generation = 3", "did you mean generations?"),
    override("table", "populaton.parents=3", "populaton", "did you mean population?"),
    override("key of sgd", "sgd.epoch=3", "sgd.epoch = 3", "did you mean sgd.epochs?"),
    override(
        "key of an optimizer",
        "sgd.optimizers.0.learning_rat=3",
        "sgd.optimizers.0.learning_rat = 3",
        "did you mean sgd.optimizers.0.learning_rate?",
    ),
    override(
        "key of topology", "topology.rank_per_group=1", "did you mean topology.ranks_per_group?"
    ),
    override("key like nothing", "evolution.qqq=1", "unknown key evolution.qqq = 1"),
]

TYPES = [
    override("text for a number", 'generations="3"', 'generations = "3"', "expected int, got str"),
    override("fraction for a whole number", "generations=1.5", "generations = 1.5", "int"),
    override("truth for a number", "seed=true", "seed", "expected int, got bool"),
    override("text for truth", 'topology.deterministic="yes"', "topology.deterministic", "bool"),
    override("number for a table", "sgd=3", "sgd = 3", "expected a table"),
    override("number for a text", "task=3", "task = 3", "expected str, got int"),
    override("table for a list", 'sgd.optimizers={name="sgd"}', "sgd.optimizers", "list"),
    override("list of numbers", "sgd.optimizers=[3]", "sgd.optimizers.0 = 3", "a table"),
    override("text for a range", 'sgd.batch_size="big"', "sgd.batch_size", "[low, high]"),
    override("three bounds", "sgd.batch_size=[1, 2, 3]", "[1, 2, 3]", "[low, high]"),
    override("bounds in disorder", "evolution.mutation_strength=[2, 1]", "low <= high"),
    override("not a number", "evolution.smoothing=nan", "evolution.smoothing = nan"),
    override("not finite", "evolution.mutation_strength=inf", "mutation_strength = inf"),
    override("too large for anything", f"sgd.batch_size={10**400}", "sgd.batch_size = 1000"),
    override("unknown method", 'method="egsd"', 'method = "egsd"', "esgd, sgd-only, population"),
    override(
        "unknown optimizer", 'sgd.optimizers.0.name="sdg"', "sgd.optimizers.0.name", "sgd, adam"
    ),
    override(
        "unknown selection",
        'evolution.selection="best"',
        'evolution.selection = "best"',
        "inverse, window, rank, softmax",
    ),
    override(
        "optimizer without learning rate",
        'sgd.optimizers=[{name="adam"}]',
        "sgd.optimizers.0",
        "learning_rate",
    ),
    override(
        "choice of nothing", "sgd.hyperparameters.rate={choice=[]}", "sgd.hyperparameters.rate"
    ),
]

BOUNDS = [
    override("no parents", "population.parents=0", "population.parents = 0", "from 1 to"),
    override("no offspring", "population.offspring=0", "population.offspring = 0"),
    override("no generation", "generations=0", "generations = 0"),
    override("negative seed", "seed=-1", "seed = -1", "from 0 to"),
    override("no epochs", "sgd.epochs=0", "sgd.epochs = 0"),
    override("empty batches", "sgd.batch_size=[0, 8]", "sgd.batch_size = [0, 8]"),
    override("half a sample", "sgd.batch_size=0.5", "sgd.batch_size = 0.5"),
    override("fractions of samples", "sgd.batch_size=[1.5, 8]", "whole numbers"),
    override("probability of 2", "sgd.backoff_probability=2", "2", "from 0.0 to 1.0"),
    override("negative rate", "sgd.optimizers.0.learning_rate=-0.1", "learning_rate = -0.1"),
    override("much momentum", "sgd.optimizers.0.momentum=[0.5, 1.5]", "momentum = [0.5, 1.5]"),
    override("negative weight", "sgd.optimizers.0.weight=-1", "sgd.optimizers.0.weight = -1"),
    override("infinite weight", "sgd.optimizers.0.weight=inf", "sgd.optimizers.0.weight = inf"),
    override("large elite", "evolution.elite_fraction=1.5", "evolution.elite_fraction = 1.5"),
    override("negative smoothing", "evolution.smoothing=-1", "evolution.smoothing = -1"),
    override("no parents of a child", "evolution.parents_per_child=[1, 0]", "parents_per_child"),
    override("no ranks", "topology.ranks_per_group=0", "topology.ranks_per_group = 0"),
    override("no threads", "topology.threads_per_rank=0", "topology.threads_per_rank = 0"),
    override("nothing kept", "checkpoint.keep=0", "checkpoint.keep = 0", "from 1 to"),
    override(
        "hyper-parameter of empty batches",
        "sgd.hyperparameters.batch_size=0",
        "sgd.hyperparameters.batch_size = 0",
    ),
    override(
        "hyper-parameter of worded decay",
        'sgd.hyperparameters.weight_decay="much"',
        "sgd.hyperparameters.weight_decay",
        "much",
    ),
]

TOGETHER = [
    override(
        "more parents than there are",
        "evolution.parents_per_child=4",
        "evolution.parents_per_child = 4",
        "population.parents = 3",
        "distinct",
    ),
    override("list with too many parents", "evolution.parents_per_child=[1, 9]", "= 9"),
    override("empty list of parents", "evolution.parents_per_child=[]", "parents_per_child = []"),
    override("no elite", "evolution.elite_fraction=0", "elite_fraction = 0", "the elite needs one"),
    override("elite of less than one", "evolution.elite_fraction=0.1", "round(0.1 x 3) = 0"),
    override("no optimizers", "sgd.optimizers=[]", "sgd.optimizers is empty"),
    override("weights of 0", "sgd.optimizers.0.weight=0", "the weights add up to 0"),
    override(
        "momentum for adam",
        'sgd.optimizers.0={name="adam", learning_rate=0.1, momentum=0.9}',
        "sgd.optimizers.0.momentum = 0.9",
        "adam",
        "remove the key",
    ),
    override(
        "log-uniform from 0",
        "sgd.optimizers.0={name='sgd', learning_rate=[0, 1], "
        "learning_rate_distribution='log-uniform'}",
        "sgd.optimizers.0.learning_rate = [0, 1]",
        "log-uniform needs a low above 0",
    ),
    override("single without rate", 'method="single"', "single.learning_rate = 0.0", "above 0"),
    Case(
        "single with nesterov alone",
        (
            *("run", "tiny.toml", "--set", "method='single'"),
            *("--set", "single={learning_rate=0.1, nesterov=true}"),
        ),
        ("single.nesterov", "momentum"),
    ),
    override(
        "initial weights of random networks",
        'population.initial_weights="x.safetensors"',
        'population.initial_weights = "x.safetensors"',
        'initialization = "perturb"',
    ),
]

TASKS = [
    recipe("no task", TINY.replace('task = "digits"', ""), "missing", "task"),
    override("task of no name", 'task=""', 'task = ""', "package.module:factory"),
    override("unknown task", 'task="digit"', 'task = "digit"', "did you mean digits?"),
    override("task of no form", 'task="os.path"', 'task = "os.path"', "package.module:factory"),
    override("task in no module", 'task="nowhere.at_all:make"', "no module named nowhere"),
    override("task in a file", 'task="tiny.py:make"', "without .py"),
    override("nothing of this name", 'task="json:lods"', "has no lods", "did you mean loads?"),
    task(
        "module that raises",
        "raises",
        "1 / 0",
        "importing raises raised ZeroDivisionError",
        "raises.py:1",
    ),
    task("module with a mistake", "mistake", "def make(:", "SyntaxError", "mistake.py"),
    task("module that exits", "exits", "import sys\nsys.exit(0)", "importing exits", "SystemExit"),
    task(
        "factory that raises",
        "broken",
        "\n\ndef make(*, size=2):\n    raise KeyError('no data')",
        "make raised KeyError",
        "no data",
        "broken.py:4",
    ),
    task("factory of something else", "other", "def make():\n    return 3", "type int", "Task"),
    task("factory that is none", "thing", "make = 3", "cannot be called"),
    task(
        "unknown option of a task",
        "options_1",
        TASK.format(model="torch.nn.Linear(2, 2)"),
        "task_options.siez = 3",
        "did you mean size?",
        options="siez = 3",
    ),
    task(
        "missing option",
        "options_2",
        "def make(*, folder):\n    return folder",
        "do not fit",
        "folder",
    ),
    override(
        "option out of bounds", "task_options.hidden=0", "task_options.hidden = 0", "at least"
    ),
    override("option of a wrong type", 'task_options.hidden="x"', "task_options.hidden = 'x'"),
    override("unknown option of digits", "task_options.hiden=4", "did you mean hidden?"),
    task(
        "model of doubles",
        "doubles",
        TASK.format(model="torch.nn.Linear(2, 2).double()"),
        "torch.float64",
        "model.float()",
    ),
    task("model of nothing", "nothing", TASK.format(model="torch.nn.ReLU()"), "no parameters"),
    task(
        "model of buffers",
        "buffers",
        TASK.format(model="torch.nn.BatchNorm1d(2, affine=False)"),
        "no parameters",
    ),
    override(
        "unknown hyper-parameter",
        "sgd.hyperparameters.dropout=0.5",
        "sgd.hyperparameters.dropout",
        "batch_size, patience, weight_decay",
    ),
]

TOPOLOGY = [
    override(
        "ranks that do not divide",
        "topology.ranks_per_group=2",
        "world size 1",
        "topology.ranks_per_group 2",
        "start 2 ranks",
    ),
    override("gpu without one", 'topology.device="cuda"', "topology.device", "torch finds no GPU"),
]


def weights_of(key: str, first: str = "") -> list[Case]:
    """Return cases of a weights file that a key of the recipe names."""

    def case(name: str, path: str, *fragments: str, more: str = "seed=1") -> Case:
        tail = ("--set", f'{key}="{path}"', "--set", more)
        argv = ("run", "tiny.toml", *(("--set", first) if first else ()), *tail)
        files = {"text.safetensors": "no weights", "old.pt": "no weights"}
        return Case(f"{key} {name}", argv, fragments, files)

    return [
        case("missing", "nowhere.safetensors", "nowhere.safetensors: no such file"),
        case("of another kind", "old.pt", "old.pt: only .safetensors files are read"),
        case("that is none", "text.safetensors", "text.safetensors: not a .safetensors file"),
        case("that is a folder", "folder.safetensors", "folder.safetensors"),
        case("of another shape", "{weights}", "has shape", more="task_options.hidden=5"),
        case("of another model", "{weights}", "missing", more='task="linear_task:make"'),
    ]


WEIGHTS = weights_of("anchor.weights") + weights_of(
    "population.initial_weights", 'population.initialization="perturb"'
)

OUTPUTS = [
    command("output is a file", "run tiny.toml --output tiny.toml", "tiny.toml", "is a file"),
    command("output in a file", "run tiny.toml --output tiny.toml/x", "tiny.toml"),
    command("output of a long name", f"run tiny.toml --output {'x' * 300}", "xxx"),
    command("nothing to resume", "run tiny.toml --resume require", "no complete generation"),
    command("empty folder to resume", "run tiny.toml --resume require --output empty", "empty"),
    command(
        "another run is there", "run tiny.toml --resume never --output {run}", "already holds a run"
    ),
    command(
        "another recipe is there",
        "run tiny.toml --output {run} --set seed=9",
        "another recipe",
        "seed: 1 -> 9",
        "name another --output",
    ),
    command(
        "another model is there",
        "run digits --output {run}",
        "another recipe",
        "population.parents: 3 -> 8",
    ),
]

READING = [
    command("inspect nowhere", "inspect nowhere", "nowhere: no such folder"),
    command("inspect nothing", "inspect empty", "empty: no checkpoint"),
    command("inspect a file", "inspect tiny.toml", "tiny.toml"),
    command("inspect a long name", f"inspect {'x' * 300}", "xxx"),
    command("inspect json of nothing", "inspect empty --json", "empty: no checkpoint"),
    command(
        "inspect a generation", "inspect {run} --generation 7", "no generation 7", "it has 0, 1"
    ),
    command("verify nowhere", "verify nowhere", "nowhere: no such folder"),
    command("verify nothing", "verify empty", "empty: no checkpoint"),
    command("verify a file", "verify tiny.toml", "tiny.toml"),
    command("verify a long name", f"verify {'x' * 300}", "xxx"),
    command("export nowhere", "export nowhere --output x.pt", "nowhere: no such folder"),
    command("export nothing", "export empty --output x.pt", "empty: no checkpoint"),
    command(
        "export to another kind",
        "export {run} --output x.onnx",
        "x.onnx",
        ".safetensors or .pt",
    ),
    command("export to no folder", "export {run} --output a/b.pt", "a does not exist"),
    command("export to a folder", "export {run} --output folder.safetensors", "folder.safetensors"),
    command(
        "export an unknown individual",
        "export {run} --individual 999 --output x.pt",
        "--individual 999",
        "best",
    ),
    command("export a worded individual", "export {run} --individual two --output x.pt", "two"),
    command("export a generation", "export {run} --generation 7 --output x.pt", "no generation 7"),
]

CASES = [
    *COMMAND_LINES,
    *FILES,
    *KEYS,
    *TYPES,
    *BOUNDS,
    *TOGETHER,
    *TASKS,
    *TOPOLOGY,
    *WEIGHTS,
    *OUTPUTS,
    *READING,
]

# One process --------------------------------------------------------------------------------------

LOOP = """\
import json, os, sys
from esgd_hpc.cli import main

requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
for line in requests:
    request = json.loads(line)
    os.chdir(request["cwd"])
    for number, path in ((1, request["stdout"]), (2, request["stderr"])):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    status = main(request["argv"])
    sys.stdout.flush()
    sys.stderr.flush()
    print(status, file=answers, flush=True)
"""


class Esgd:
    """Runs commands one after another in one process; starts another where that ends."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, argv: Sequence[str], cwd: Path, outputs: Path) -> CompletedProcess[str]:
        outputs.mkdir()
        request = {
            "argv": list(argv),
            "cwd": str(cwd),
            "stdout": str(outputs / "stdout"),
            "stderr": str(outputs / "stderr"),
        }
        process = self._started()
        assert process.stdin
        assert process.stdout
        print(json.dumps(request), file=process.stdin, flush=True)
        if not select.select([process.stdout], [], [], 60.0)[0]:
            self.close()
            pytest.fail(f"{' '.join(argv)[:200]} did not end in 60 seconds")
        answer = process.stdout.readline()
        status = int(answer) if answer else process.wait()
        out, err = (outputs / name for name in ("stdout", "stderr"))
        return CompletedProcess(argv, status, out.read_text(), err.read_text())

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            quiet = {"CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
            self._process = subprocess.Popen(
                [sys.executable, "-c", LOOP],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **quiet},
            )
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe
                pipe.close()
            self._process = None


@pytest.fixture(scope="module")
def esgd() -> Iterator[Esgd]:
    process = Esgd()
    yield process
    process.close()


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run of TINY, and its best individual as a weights file."""

    run: Path
    weights: Path


@pytest.fixture(scope="module")
def finished(esgd: Esgd, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(TINY)
    made = Finished(folder / "run", folder / "weights.safetensors")
    for argv in (
        ("run", "tiny.toml", "--output", str(made.run)),
        ("export", str(made.run), "--output", str(made.weights)),
    ):
        done = esgd(argv, folder, folder / f"output of {argv[0]}")
        assert done.returncode == 0, done.stderr
    return made


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Return what is in a folder, with sizes and times of writing of its files."""
    files = [path for path in folder.rglob("*") if path.name != "__pycache__"]
    return {
        str(path.relative_to(folder)): (
            (0, 0) if path.is_dir() else (path.lstat().st_size, path.lstat().st_mtime_ns)
        )
        for path in files
        if path.suffix != ".pyc"
    }


def prepared(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    """Make the folder in which a case runs."""
    folder.mkdir()
    (folder / "empty").mkdir()
    (folder / "folder.safetensors").mkdir()
    standard = {
        "tiny.toml": TINY,
        "linear_task.py": TASK.format(model="torch.nn.Linear(2, 2)").replace("size", "hidden"),
    }
    for name, content in {**standard, **files}.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def assert_refused(done: CompletedProcess[str], fragments: Sequence[str]) -> None:
    """Fail unless there is status 2 and one line that says what is wrong."""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 2, (done.stdout, done.stderr)
    messages = [line for line in done.stderr.splitlines() if line.startswith("esgd: error:")]
    assert len(messages) == 1, done.stderr
    for fragment in fragments:
        assert fragment in messages[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_refused(case: Case, esgd: Esgd, finished: Finished, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "here", case.files)
    before, before_run = contents(folder), contents(finished.run)
    names = {"run": finished.run, "weights": finished.weights}
    argv = [_filled(word, names) for word in case.argv]
    done = esgd(argv, folder, tmp_path / "output")
    assert_refused(done, case.fragments)
    assert done.stderr.count("\n") == 1, "there is more on standard error than the message"
    assert contents(folder) == before, "something was written"
    assert contents(finished.run) == before_run, "the run was written to"


def _filled(word: str, names: Mapping[str, Path]) -> str:
    for name, path in names.items():
        word = word.replace(f"{{{name}}}", str(path))
    return word


def test_names_of_cases_and_their_modules_are_their_own() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 40
    modules = [name for case in CASES for name in case.files if name.endswith(".py")]
    assert len(set(modules)) == len(modules)


# Three ranks --------------------------------------------------------------------------------------

ON_ONE_RANK = TASK.format(model="torch.nn.Linear(2, 2)").replace(
    "    return Mine(size)",
    """\
    from mpi4py import MPI
    if MPI.COMM_WORLD.rank == 2:
        raise OSError("disk of one node")
    return Mine(size)""",
)

ON_RANKS = [
    command("unknown option", "run tiny.toml --ouput x", "--ouput"),
    command("not toml", "run bad.toml", "not valid TOML"),
    override("unknown key", "sgd.epoch=3", "did you mean sgd.epochs?"),
    override(
        "ranks that do not divide",
        "topology.ranks_per_group=2",
        "world size 3",
        "topology.ranks_per_group 2",
        "start 2 or 4 ranks",
    ),
    task("factory that raises on one rank", "one_rank", ON_ONE_RANK, "OSError: disk of one node"),
    override("missing anchor", 'anchor.weights="x.safetensors"', "x.safetensors: no such file"),
    command("nothing to resume", "run tiny.toml --resume require", "no complete generation"),
    command("inspect nowhere", "inspect nowhere", "nowhere: no such folder"),
]


@pytest.mark.parametrize("case", ON_RANKS, ids=lambda case: case.name)
def test_bad_input_ends_all_ranks_with_one_message(
    case: Case, launch: "Launch", tmp_path: Path
) -> None:
    folder = prepared(tmp_path / "here", {"bad.toml": "task = digits", **case.files})
    before = contents(folder)
    done = launch(3, *case.argv, cwd=folder, timeout=60)
    assert_refused(done, case.fragments)
    assert contents(folder) == before, "something was written"


@pytest.mark.parametrize("argv", [("run", "nowhere.toml"), ("verify", "nowhere"), ("run",)])
def test_a_process_without_launcher_has_the_same_status(
    argv: tuple[str, ...], launch: "Launch", tmp_path: Path
) -> None:
    assert_refused(launch(0, *argv, cwd=tmp_path), ())


@pytest.mark.parametrize("launched", [{}, {"OMPI_COMM_WORLD_RANK": "0"}], ids=["alone", "launched"])
def test_without_an_mpi_library_the_message_says_how_to_get_one(
    launched: Mapping[str, str], launch: "Launch", tmp_path: Path
) -> None:
    folder = prepared(tmp_path / "here", {})
    broken = tmp_path / "broken" / "mpi4py"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("")
    (broken / "MPI.py").write_text('raise RuntimeError("cannot load MPI library")')
    path = os.pathsep.join(filter(None, [str(broken.parent), os.environ.get("PYTHONPATH", "")]))
    done = launch(0, "run", "tiny.toml", cwd=folder, env={"PYTHONPATH": path, **launched})
    assert_refused(done, ("no MPI library can be loaded", "cannot load MPI library", "openmpi"))
