"""Train a population of networks with Evolutionary Stochastic Gradient Descent over MPI.

The names below are the public Python interface; they are imported when first used, so that
`import esgd_hpc` itself costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esgd_hpc.api import RunResult, run
    from esgd_hpc.config import Choice, Range, Recipe
    from esgd_hpc.errors import EsgdError, InputError, RunError
    from esgd_hpc.recipe_file import load_recipe, recipe_from
    from esgd_hpc.tasks.base import ClassificationTask, Task

_HOMES = {
    "Choice": "config",
    "Range": "config",
    "Recipe": "config",
    "load_recipe": "recipe_file",
    "recipe_from": "recipe_file",
    "EsgdError": "errors",
    "InputError": "errors",
    "RunError": "errors",
    "RunResult": "api",
    "run": "api",
    "ClassificationTask": "tasks.base",
    "Task": "tasks.base",
}

__all__ = [
    "Choice",
    "ClassificationTask",
    "EsgdError",
    "InputError",
    "Range",
    "Recipe",
    "RunError",
    "RunResult",
    "Task",
    "load_recipe",
    "recipe_from",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"esgd_hpc.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
