"""MPI, torch and h5py stay where ARCHITECTURE.md has them, and `esgd --help` loads none of them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "esgd_hpc"
SOURCES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

COMMUNICATION = {"mpi4py", "horovod", "torch.distributed"}
# They fetch the world communicator of the process, and only where they need it.
FETCH_WORLD = {"api.py", "cli.py", "commands/run.py"}
PURE = {
    "cli.py",
    "config.py",
    "recipe_file.py",
    "recipe_checks.py",
    "distance.py",
    "errors.py",
    "launch.py",
    "preflight/facts.py",
    "preflight/judge.py",
    "preflight/rows.py",
    "evolution/operators.py",
    "evolution/placement.py",
    "evolution/plan.py",
    "evolution/planner.py",
    "layout.py",
    "learner/__init__.py",
    "learner/null.py",
    "lineage.py",
    "population.py",
    "rng.py",
    "sgd/optimizers.py",
    "tasks/__init__.py",
    "tasks/null.py",
    "underway.py",
}
SLOW_TO_LOAD = {"h5py", "mpi4py", "msgspec", "numpy", "torch"}


@dataclass(frozen=True)
class Import:
    """One import that happens at run time; `lazy` ones inside a function."""

    module: str
    line: int
    lazy: bool


def imports(source: str) -> list[Import]:
    """Return the imports of a module, other than those for type checkers only."""
    return list(_walk(ast.parse(source), lazy=False))


def _walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
    children = list(ast.iter_child_nodes(node))
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            children = list(node.orelse)
        case ast.Import():
            for name in node.names:
                yield Import(name.name, node.lineno, lazy)
        case ast.ImportFrom(module=str(module), level=0):
            for name in node.names:
                yield Import(f"{module}.{name.name}", node.lineno, lazy)
        case ast.Attribute(value=ast.Name(id="torch"), attr="distributed"):
            yield Import("torch.distributed", node.lineno, lazy)
        case ast.Call(
            func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
            args=[ast.Constant(str(module)), *_],
        ):
            yield Import(module, node.lineno, lazy)
    inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in children:
        yield from _walk(child, lazy or inside)


def of(found: Import, packages: set[str]) -> bool:
    """Return whether an import is of one of these packages or of something in them."""
    return any(found.module == p or found.module.startswith(f"{p}.") for p in packages)


def wrong_imports(name: str, source: str) -> list[Import]:
    """Return the imports that the module `name` must not have."""
    found = imports(source)
    if name in FETCH_WORLD:
        found = [i for i in found if not (i.lazy and of(i, {"mpi4py"}))]
    wrong = []
    if not name.startswith("parallel/"):
        wrong += [i for i in found if of(i, COMMUNICATION)]
    if not name.startswith("checkpoint/") and name != "data/store.py":
        wrong += [i for i in found if of(i, {"h5py"})]
    if name in PURE:
        wrong += [i for i in found if of(i, {"torch", "h5py", "mpi4py"})]
    return wrong


@pytest.mark.parametrize("name", SOURCES)
def test_module_imports_only_what_its_place_may(name: str) -> None:
    wrong = wrong_imports(name, (PACKAGE / name).read_text())
    assert not wrong, [f"{name}:{i.line} imports {i.module}" for i in wrong]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("driver.py", "from mpi4py import MPI"),
        ("driver.py", "import horovod.torch as hvd"),
        ("driver.py", "def f():\n    import torch.distributed as dist"),
        ("learner/network.py", "from torch import distributed"),
        ("learner/network.py", "import torch\ntorch.distributed.barrier()"),
        ("learner/network.py", "import importlib\nimportlib.import_module('horovod.torch')"),
        ("commands/run.py", "from mpi4py import MPI"),
        ("commands/run.py", "def f():\n    import horovod"),
        ("cli.py", "from mpi4py import MPI"),
        ("cli.py", "def f():\n    import torch"),
        ("genome.py", "import h5py"),
        ("config.py", "def f():\n    import torch"),
        ("rng.py", "if True:\n    from torch.nn import functional"),
        ("driver.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import h5py"),
    ],
)
def test_wrong_import_is_found(name: str, source: str) -> None:
    assert wrong_imports(name, source)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("driver.py", "if TYPE_CHECKING:\n    from mpi4py import MPI"),
        ("driver.py", "import torchmetrics\nfrom . import h5py"),
        ("commands/run.py", "def f():\n    from mpi4py import MPI"),
        ("parallel/averaging/torch.py", "import torch.distributed as dist"),
        ("checkpoint/writer.py", "import h5py"),
        ("learner/network.py", "import torch"),
    ],
)
def test_right_import_is_left_alone(name: str, source: str) -> None:
    assert not wrong_imports(name, source)


def test_help_loads_no_slow_library() -> None:
    """Thousands of ranks start at once, and each import is many file-system calls."""
    command = [sys.executable, "-X", "importtime", "-m", "esgd_hpc", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "usage" in result.stdout.lower()
    loaded = {
        line.rpartition("|")[2].strip()
        for line in result.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "argparse" in loaded
    assert not {name.partition(".")[0] for name in loaded} & SLOW_TO_LOAD
