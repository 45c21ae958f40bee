"""Tasks load by name; each mistake in name, module, options or task is one clear InputError."""

import importlib.resources
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from esgd_hpc.config import Range
from esgd_hpc.data.batches import fetch, fixed_batches, length, training_shards
from esgd_hpc.errors import InputError
from esgd_hpc.recipe_file import load_recipe
from esgd_hpc.tasks import load_task, task_names
from esgd_hpc.tasks.base import Data, Task
from esgd_hpc.tasks.digits import digits

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _restored_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what loading user modules leaves behind."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before, variables = set(sys.modules), set(os.environ)
    yield
    for name in set(os.environ) - variables:
        if name.startswith(("KMP_", "TORCHINDUCTOR_")):  # set by scikit-learn and torch, on import
            del os.environ[name]
    for name in set(sys.modules) - before:
        if not name.startswith(("esgd_hpc", "torch", "sklearn", "scipy", "numpy")):
            del sys.modules[name]


def tensors(data: Data) -> tuple[Tensor, Tensor]:
    """Return the two tensors of an in-memory classification task."""
    assert isinstance(data, tuple)
    inputs, targets = data
    return inputs, targets


def train(task: Task, model: nn.Module, num_epochs: int, learning_rate: float) -> None:
    torch.manual_seed(1)
    order = np.random.default_rng(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(num_epochs):
        shards = training_shards(order.permutation(length(task.training)), 64, 0, 1)
        model.train()
        for batch in fetch(task.training, [indices for indices, _ in shards], torch.device("cpu")):
            optimizer.zero_grad()
            task.loss(model, task.augment(batch)).backward()
            optimizer.step()


def score(task: Task, model: nn.Module) -> dict[str, float]:
    model.eval()
    totals = {"loss": 0.0, "error_rate": 0.0}
    num_samples = length(task.validation)
    with torch.no_grad():
        for batch in fetch(task.validation, fixed_batches(num_samples, 500), torch.device("cpu")):
            assert batch is not None
            for name, value in task.score(model, batch).items():
                totals[name] += value.item() * len(batch[1]) / num_samples
    return totals


# Names and modules --------------------------------------------------------------------------------


def test_naming_tasks_imports_no_torch() -> None:
    code = (
        "import sys, esgd_hpc.tasks as t; assert 'digits' in t.task_names();"
        " assert not {'torch', 'sklearn', 'mpi4py'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


GOOD = """
from torch import nn, zeros
from esgd_hpc.tasks.base import ClassificationTask, Task
class Good(ClassificationTask):
    def __init__(self, *, scale=1):
        super().__init__(training=(zeros(4, 2), zeros(4)), validation=(zeros(3, 2), zeros(3)))
        self.scale = scale
    def model(self):
        return nn.Linear(2, 2)
def task(**options):
    return Good(**options)
def picky(steps, *, wide=False):
    return Good()
def positional(steps, /):
    return Good()
def bare():
    return Good()
number = 3
def raises(path=""):
    return open(path + "/no/such/file")
def exits():
    raise SystemExit(3)
def wordless():
    raise ValueError
def refuses():
    from esgd_hpc.errors import InputError
    raise InputError("task_options.path = 3: expected a text")
def nothing():
    Good()
class NoModel(Task):
    def __init__(self):
        super().__init__(training=(zeros(1),), validation=(zeros(1),))
class NoData(Good):
    def __init__(self):
        pass
class NoLoss(NoModel):
    def model(self):
        return nn.Linear(2, 2)
class BadData(Good):
    def __init__(self):
        super().__init__()
        self.validation = (zeros(2), zeros(3))
"""
_number = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a new module of the current folder, with good and bad factories."""
    name = f"user_task_{next(_number)}"
    (tmp_path / f"{name}.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    return name


def refusal(name: str, options: dict[str, Any] | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load_task(name, options or {})
    return str(caught.value)


def test_a_factory_of_the_current_folder_gets_the_options(module: str) -> None:
    assert vars(load_task(f"{module}:task", {"scale": 7}))["scale"] == 7
    assert type(load_task(f"{module}:Good", {})).__name__ == "Good"


def test_the_current_folder_comes_first(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / f"{module}.py").write_text("task = None")
    monkeypatch.syspath_prepend(other)
    load_task(f"{module}:task", {})
    load_task(f"{module}:task", {})
    assert sys.path.count(str(tmp_path)) == 1


def test_a_module_may_lie_in_a_package(module: str, tmp_path: Path) -> None:
    package = tmp_path / f"{module}_package"
    package.mkdir()
    (package / "inner.py").write_text(f"from {module} import task")
    load_task(f"{package.name}.inner:task", {})
    assert f"no module named {package.name}.outer; " in refusal(f"{package.name}.outer:task")


@pytest.mark.parametrize(
    "name", ["", "digts", "mine.task", "mine:", ":task", "a:b:c", "./mine:task", "a..b:c", "a b:c"]
)
def test_a_name_of_no_known_form_is_refused(name: str) -> None:
    message = refusal(name)
    known = ", ".join(task_names())
    assert message.startswith(f'task = "{name}": neither a built-in task ({known}) nor')
    assert message.endswith("; did you mean digits?") == (name == "digts")


def test_a_missing_module_is_told_from_one_that_misses_something(
    module: str, tmp_path: Path
) -> None:
    message = refusal("not_there_at_all:task")
    assert "no module named not_there_at_all; start in the folder that holds it" in message
    assert str(tmp_path) in message
    assert refusal(f"{module}.py:task").endswith("write the module without .py")
    (tmp_path / f"{module}_needy.py").write_text("import os\nimport not_there_either\n")
    message = refusal(f"{module}_needy:task")
    assert f"importing {module}_needy raised ModuleNotFoundError" in message
    assert "'not_there_either'" in message
    assert f"{module}_needy.py:2;" in message


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("a = 1\nb = a / 0\n", "ZeroDivisionError: division by zero at {file}:2;"),
        ("a = 1\nb = = 2\n", "SyntaxError: invalid syntax ({name}, line 2) at {file}:2;"),
        ("import pathlib\n\npathlib.Path('/no/such').read_text()\n", "'/no/such' at {file}:3;"),
        ("import sys\nsys.exit(4)\n", "SystemExit: 4 at {file}:2;"),
    ],
    ids=["error", "syntax", "inside the library", "exit"],
)
def test_a_module_that_raises_is_told_with_its_line(
    module: str, tmp_path: Path, code: str, told: str
) -> None:
    file = tmp_path / f"{module}_raises.py"
    file.write_text(code)
    message = refusal(f"{module}_raises:task")
    assert f"importing {module}_raises raised " in message
    assert told.format(file=file, name=file.name) in message


def test_a_missing_attribute_is_refused_with_the_nearest(module: str, tmp_path: Path) -> None:
    message = refusal(f"{module}:tsk")
    assert f"{module} ({tmp_path / module}.py) has no tsk; did you mean task?" in message
    assert "number in" in refusal(f"{module}:number")
    assert "is of type int, which cannot be called" in refusal(f"{module}:number")


# Options ------------------------------------------------------------------------------------------


def test_an_unknown_option_is_refused_with_the_known_ones(module: str) -> None:
    message = refusal(f"{module}:picky", {"steps": 1, "wid": True})
    assert message.startswith(f'task_options.wid = True: unknown to task "{module}:picky"')
    assert message.endswith("; did you mean wide?; known options: steps, wide")
    assert refusal(f"{module}:bare", {"x": 1}).endswith("; it takes no options")
    assert refusal("digits", {"hiddn": 3}).endswith(
        "; did you mean hidden?; known options: hidden, validation_fraction"
    )


def test_a_missing_option_is_refused(module: str) -> None:
    message = refusal(f"{module}:picky")
    assert "missing a required argument: 'steps'; known options: steps, wide" in message
    assert "task_options.steps = 1: unknown" in refusal(f"{module}:positional", {"steps": 1})


def test_a_factory_that_raises_is_told_with_its_line(module: str, tmp_path: Path) -> None:
    line = GOOD.splitlines().index('    return open(path + "/no/such/file")') + 1
    message = refusal(f"{module}:raises", {"path": "/x"})
    assert message.startswith(f'task = "{module}:raises": raises raised FileNotFoundError: ')
    assert f"'/x/no/such/file' at {tmp_path / module}.py:{line};" in message
    assert "exits raised SystemExit: 3 at" in refusal(f"{module}:exits")
    assert "wordless raised ValueError at" in refusal(f"{module}:wordless")
    # Options that only a constructor further down refuses.
    assert "task raised TypeError: " in refusal(f"{module}:task", {"scales": 7})


def test_an_input_error_of_a_factory_passes_through(module: str) -> None:
    assert refusal(f"{module}:refuses") == "task_options.path = 3: expected a text"


# Tasks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        ("nothing", "nothing returned an object of type NoneType; return an instance"),
        ("NoModel", "NoModel has no model(); define it"),
        ("NoLoss", "NoLoss has no loss(); define it"),
        ("NoData", "NoData has no training data; call super().__init__("),
        ("BadData", "tensors of shapes [2], [3]; give them one equal first dimension"),
    ],
)
def test_what_is_no_complete_task_is_refused(module: str, factory: str, told: str) -> None:
    message = refusal(f"{module}:{factory}")
    assert f"{module}:{factory}" in message
    assert told in message


# Digits -------------------------------------------------------------------------------------------


def test_digits_can_be_learned() -> None:
    task = load_task("digits", {"hidden": 32})
    torch.manual_seed(1)
    model = task.model()
    before = score(task, model)
    train(task, model, num_epochs=10, learning_rate=5e-3)
    after = score(task, model)
    assert before["error_rate"] > 0.7
    assert after["error_rate"] < 0.08
    assert after["loss"] < before["loss"] / 5


def test_digits_are_split_once_and_for_all() -> None:
    torch.manual_seed(1)
    one = digits()
    torch.manual_seed(2)
    other = digits()
    training, validation = tensors(one.training), tensors(one.validation)
    others = [*tensors(other.training), *tensors(other.validation)]
    for a, b in zip([*training, *validation], others, strict=True):
        assert torch.equal(a, b)
    inputs = torch.cat([training[0], validation[0]])
    targets = torch.cat([training[1], validation[1]])
    assert len(validation[0]) == 359
    assert inputs.shape == (1797, 64)
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
    assert (inputs.min().item(), inputs.max().item()) == (0.0, 1.0)
    assert torch.bincount(validation[1], minlength=10).min() >= 20
    assert torch.bincount(targets).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": 0}, {"hidden": True}, {"hidden": "64"}, {"hidden": 6.5},
        {"validation_fraction": 0.0}, {"validation_fraction": 1.0},
        {"validation_fraction": "half"}, {"validation_fraction": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_options_of_digits_are_checked(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    assert refusal("digits", options).startswith(f"task_options.{name} = {value!r}: expected a ")


# Recipes and the example --------------------------------------------------------------------------


def test_the_example_loads_and_can_be_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES / "spirals")
    recipe = load_recipe("recipe.toml")
    task = load_task(recipe.task, recipe.task_options)
    declared = task.hyperparameters["dropout"]
    chosen = recipe.sgd.hyperparameters["dropout"]
    assert isinstance(declared, Range)
    assert isinstance(chosen, Range)
    assert declared.low <= chosen.low <= chosen.high <= declared.high
    torch.manual_seed(1)
    model = task.model()
    task.configure(model, {"dropout": 0.05})
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.05]
    before = score(task, model)["error_rate"]
    train(task, model, num_epochs=40, learning_rate=1e-2)
    assert before > 0.4
    assert score(task, model)["error_rate"] < 0.1


def test_the_recipe_of_the_first_run_names_a_task_and_options_that_fit() -> None:
    recipe = load_recipe("digits")
    assert recipe.task in task_names()
    load_task(recipe.task, recipe.task_options)
    text = (importlib.resources.files("esgd_hpc") / "recipes" / "digits.toml").read_text("utf-8")
    assert text.startswith("# ")
