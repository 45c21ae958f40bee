"""Which task a recipe names: a built-in one, or a factory in a module of the user's.

Importing this package imports no torch; `load_task` does.
"""

import difflib
import importlib
import inspect
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from esgd_hpc.errors import InputError
from esgd_hpc.tasks.null import NULL

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

    from esgd_hpc.data.store import Stored
    from esgd_hpc.tasks.base import Task

_BUILT_IN = {
    "asterisk": "esgd_hpc.tasks.speech:asterisk",
    "bn50": "esgd_hpc.tasks.speech:bn50",
    "cifar10": "esgd_hpc.tasks.images:cifar10",
    "digits": "esgd_hpc.tasks.digits:digits",
    "fashion": "esgd_hpc.tasks.images:fashion",
    "festvox-ru": "esgd_hpc.tasks.speech:festvox_ru",
    "kjv": "esgd_hpc.tasks.language:kjv",
    "ptb": "esgd_hpc.tasks.language:ptb",
    "swb300": "esgd_hpc.tasks.speech:swb300",
}


def task_names() -> list[str]:
    """Return the names of the built-in tasks."""
    return sorted([*_BUILT_IN, NULL])


def load_task(name: str, options: Mapping[str, Any]) -> "Task":
    """Return the task of a built-in name or "package.module:factory", made with the options.

    A module of the user's is looked for in the current folder first. Raises InputError, and
    nothing else, for whatever is wrong with the name, the module, the options or the task.
    """
    if name == NULL:
        raise InputError(f'task = "{NULL}" has no network, which this needs; name another task')
    path = _BUILT_IN.get(name, name)
    module_name, colon, attribute = path.partition(":")
    parts = [*module_name.split("."), attribute]
    if not colon or not all(part.isidentifier() for part in parts):
        raise InputError(
            f'task = "{name}": neither a built-in task ({", ".join(task_names())}) nor of the form'
            f' "package.module:factory"{_did_you_mean(name, task_names())}'
        )
    module = _import(name, module_name)
    factory = _factory(name, module, attribute)
    check_options(name, factory, options)
    try:
        task = factory(**options)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f'task = "{name}": {attribute} raised {_told(error)};'
            " correct task_options or the task's code"
        ) from error
    return _checked(name, attribute, task)


def missing_data_of(task: "Task") -> list["Stored"]:
    """Return the datasets of prepared files that a task needs and that are not there."""
    return [stored for stored in stored_data(task) if stored.shape is None]


def read_data(task: "Task", read: Callable[["Stored"], "Tensor"]) -> dict["Stored", "Tensor"]:
    """Return the datasets of prepared files that a task needs, by `read`, each once.

    In an order that the task alone decides, so that ranks may read together.
    """
    return {stored: read(stored) for stored in dict.fromkeys(stored_data(task))}


_DATA = ("training", "validation", "test", "shared")
"""Attributes of a task that may name datasets of prepared files."""


def put_data(task: "Task", found: Mapping["Stored", "Tensor"]) -> None:
    """Put what `read_data` found in the places of its datasets."""

    def placed(data: Any) -> Any:
        if isinstance(data, Mapping):
            return {name: placed(part) for name, part in data.items()}
        if _is_stored(data):
            return found[data]
        return tuple(map(placed, data)) if isinstance(data, list | tuple) else data

    if found:
        for place in _DATA:
            setattr(task, place, placed(getattr(task, place)))


@contextmanager
def data_in_memory(task: "Task", found: Mapping["Stored", "Tensor"]) -> Iterator[None]:
    """Let the task have what `read_data` found for a `with` block, after which it may vanish."""
    before = {place: getattr(task, place) for place in _DATA}
    try:
        put_data(task, found)
        yield
    finally:
        for place, data in before.items():
            setattr(task, place, data)


def _is_stored(data: Any) -> bool:
    from esgd_hpc.data.store import Stored

    return isinstance(data, Stored)


def stored_data(task: "Task") -> list["Stored"]:
    """Return the datasets of prepared files that a task names, in the task's order."""
    parts: list[Any] = []
    for data in (task.training, task.validation, task.test):
        parts += data if isinstance(data, list | tuple) else []
    return [part for part in [*parts, *task.shared.values()] if _is_stored(part)]


# Steps --------------------------------------------------------------------------------------------


def _import(name: str, module_name: str) -> "ModuleType":
    """Import the module, with the current folder first on the path, where it stays.

    A module may import its neighbours later, so the folder must outlive this call.
    """
    folder = os.getcwd()
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and _is_part(error.name, of=module_name):
            remedy = f"start in the folder that holds it (now {folder}) or add that to PYTHONPATH"
            if module_name.endswith(".py"):
                remedy = "write the module without .py"
            raise InputError(f'task = "{name}": no module named {error.name}; {remedy}') from None
        raise InputError(
            f'task = "{name}": importing {module_name} raised {_told(error)};'
            " correct the module or install what it needs"
        ) from error


def _is_part(missing: str | None, of: str) -> bool:
    """Whether the missing module is the asked one or a package around it."""
    return missing is not None and f"{of}.".startswith(f"{missing}.")


def _factory(name: str, module: "ModuleType", attribute: str) -> Callable[..., Any]:
    place = f"{module.__name__} ({getattr(module, '__file__', None) or 'built in'})"
    if not hasattr(module, attribute):
        known = [n for n, value in vars(module).items() if callable(value)]
        raise InputError(
            f'task = "{name}": {place} has no {attribute}{_did_you_mean(attribute, known)}'
            f"; define a function {attribute} there that returns a Task"
        )
    factory = getattr(module, attribute)
    if not callable(factory):
        raise InputError(
            f'task = "{name}": {attribute} in {place} is of type {type(factory).__name__}, which'
            " cannot be called; name a function or a class that makes a Task"
        )
    return factory  # type: ignore[no-any-return]


def check_options(name: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise InputError where a factory does not take these `task_options`."""
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some callables of C have none; the call itself will tell
        return
    parameters = signature.parameters.values()
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = [p.name for p in parameters if p.kind in by_name]
    known_text = f"known options: {', '.join(known)}" if known else "it takes no options"
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        for option, value in options.items():
            if option not in known:
                raise InputError(
                    f'task_options.{option} = {value!r}: unknown to task "{name}"'
                    f"{_did_you_mean(option, known)}; {known_text}"
                )
    try:
        signature.bind(**options)
    except TypeError as error:
        raise InputError(f'task_options do not fit task "{name}": {error}; {known_text}') from None


def _checked(name: str, attribute: str, task: Any) -> "Task":
    """Return the task if it has all that a run needs of it."""
    from esgd_hpc.data.batches import is_missing, length
    from esgd_hpc.tasks.base import Task

    if not isinstance(task, Task):
        raise InputError(
            f'task = "{name}": {attribute} returned an object of type {type(task).__name__};'
            " return an instance of a subclass of esgd_hpc.tasks.base.Task"
        )
    kind = type(task)
    for method in ("model", "loss"):
        if getattr(kind, method) is getattr(Task, method):
            raise InputError(f'task = "{name}": {kind.__name__} has no {method}(); define it')
    for data in ("training", "validation", "test"):
        if not hasattr(task, data):
            raise InputError(
                f'task = "{name}": {kind.__name__} has no {data} data;'
                " call super().__init__(training=..., validation=...) in its __init__"
            )
        found = getattr(task, data)
        if not is_missing(found) and not (data == "test" and found is None):
            length(found, f"{data} data of task {name}")
    return task


# Words --------------------------------------------------------------------------------------------


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def _told(error: BaseException) -> str:
    """Return the error's type, message, and the line of the user's code that led to it."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        return f"{text} at {error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is this module's
    frames = [frame for frame in frames if not frame.filename.startswith("<")]
    installed = tuple({sysconfig.get_path(key) for key in ("stdlib", "purelib", "platlib")})
    own = [frame for frame in frames if not frame.filename.startswith(installed)]
    last = (own or frames)[-1:]
    return text + "".join(f" at {frame.filename}:{frame.lineno}" for frame in last)
