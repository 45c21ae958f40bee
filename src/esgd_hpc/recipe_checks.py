"""What the values of a recipe may be, alone and together."""

import math
from collections.abc import Iterable
from typing import Any

from esgd_hpc.config import Choice, Drawn, Range, Recipe, Table, short
from esgd_hpc.errors import InputError

_FRACTION = (0.0, 1.0)
_BOUNDS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "generations": (1, 10**6),
    "population.parents": (1, 10**6),
    "population.offspring": (1, 10**7),
    "population.perturbation_strength": (0.0, math.inf),
    "sgd.epochs": (1, 10**6),
    "sgd.batch_size": (1, 2**31),
    "sgd.backoff_probability": _FRACTION,
    "sgd.milestones": (1, 10**9),
    "sgd.milestone_factor": _FRACTION,
    "sgd.patience": (0, 10**6),
    "sgd.patience_factor": _FRACTION,
    "sgd.gradient_clip": (0.0, math.inf),
    "sgd.optimizers.*.weight": (0.0, math.inf),
    "sgd.optimizers.*.learning_rate": (0.0, math.inf),
    "sgd.optimizers.*.learning_rate_decay": _FRACTION,
    "sgd.optimizers.*.momentum": (0.0, 1.0),
    "sgd.optimizers.*.momentum_probability": _FRACTION,
    "sgd.optimizers.*.nesterov_probability": _FRACTION,
    "sgd.optimizers.*.weight_decay": (0.0, math.inf),
    "evolution.steps": (1, 10**4),
    "evolution.parents_per_child": (1, 10**6),
    "evolution.smoothing": (0.0, math.inf),
    "evolution.mutation_strength": (0.0, math.inf),
    "evolution.elite_fraction": (0.0, 1.0),
    "evolution.recalibration_batches": (1, 10**6),
    "fitness.batch_size": (1, 2**31),
    "fine_tuning.epochs": (0, 10**6),
    "fine_tuning.learning_rate": (0.0, math.inf),
    "single.learning_rate": (0.0, math.inf),
    "single.momentum": (0.0, 1.0),
    "single.weight_decay": (0.0, math.inf),
    "single.learning_rate_factor": _FRACTION,
    "topology.ranks_per_group": (1, 2**31),
    "topology.threads_per_rank": (1, 4096),
    "checkpoint.every": (1, 10**6),
    "checkpoint.every_minutes": (0.0, math.inf),
    "run.time_limit": (0.0, math.inf),
    "run.watchdog": (0.0, math.inf),
    "checkpoint.keep": (1, 10**6),
}


_SHORTEST_WATCHDOG = 0.05
"""Minutes; signs of life come every fifth of a second at most."""


def is_number(value: Any) -> bool:
    """Tell whether a value is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_drawn(name: str, drawn: Drawn, key: str) -> None:
    """Raise InputError if a value of the step itself could be drawn as what it cannot be."""
    values: tuple[Any, ...] = drawn.values if isinstance(drawn, Choice) else _numbers(drawn)
    if name == "batch_size":
        fits = all(type(v) is int and 1 <= v <= 2**31 for v in values)
        wanted = "whole numbers from 1 to 2147483648"
    elif name == "weight_decay":
        fits = all(is_number(v) and v >= 0.0 for v in values)
        wanted = "numbers of at least 0"
    elif name == "patience":
        fits = all(type(v) is int and 0 <= v <= 10**6 for v in values)
        wanted = "whole numbers from 0 to 1000000"
    else:
        return
    if not fits:
        raise InputError(f"{key} = {drawn.plain()}: expected {wanted}")


def _values(table: Table, prefix: str = "") -> Iterable[tuple[str, str, Any]]:
    """Yield (key, key with * for indices, value) of every leaf."""
    for name in table.__struct_fields__:
        value = getattr(table, name)
        if isinstance(value, Table):
            for key, pattern, leaf in _values(value, f"{name}."):
                yield f"{prefix}{key}", f"{prefix}{pattern}", leaf
        elif isinstance(value, tuple) and value and isinstance(value[0], Table):
            for index, item in enumerate(value):
                for key, pattern, leaf in _values(item):
                    yield f"{prefix}{name}.{index}.{key}", f"{prefix}{name}.*.{pattern}", leaf
        elif isinstance(value, dict):
            for key, leaf in value.items():
                yield f"{prefix}{name}.{key}", f"{prefix}{name}.*", leaf
        else:
            yield f"{prefix}{name}", f"{prefix}{name}", value


def _numbers(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Range):
        return (value.low, value.high)
    return value if isinstance(value, tuple) else (value,)


def check_bounds(recipe: Recipe, source: str) -> None:
    """Raise InputError for a number that is not finite or out of its bounds."""
    for key, pattern, value in _values(recipe):
        for number in _numbers(value):
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{source}: {key} = {short(value)}: expected finite numbers")
            if pattern in _BOUNDS:
                low, high = _BOUNDS[pattern]
                if not low <= number <= high:
                    shown = value.plain() if isinstance(value, Range) else value
                    limit = f"at least {low}" if math.isinf(high) else f"from {low} to {high}"
                    raise InputError(f"{source}: {key} = {shown}: expected a number {limit}")


def check_together(recipe: Recipe, source: str) -> None:
    """Raise InputError for keys that do not fit one another."""

    def refuse(text: str) -> InputError:
        return InputError(f"{source}: {text}")

    if not recipe.task:
        raise refuse('task = "": name a built-in task or "package.module:factory"')
    for key in ("batch_size", "patience"):
        drawn: Range = getattr(recipe.sgd, key)
        if not drawn.whole:
            raise refuse(f"sgd.{key} = {drawn.plain()}: expected whole numbers")
    if list(recipe.sgd.milestones) != sorted(set(recipe.sgd.milestones)):
        raise refuse(
            f"sgd.milestones = {list(recipe.sgd.milestones)}: expected epochs in ascending order"
        )
    if 0.0 < recipe.run.watchdog < _SHORTEST_WATCHDOG:
        raise refuse(
            f"run.watchdog = {recipe.run.watchdog}: expected at least {_SHORTEST_WATCHDOG} minutes,"
            " or 0 for none"
        )
    if recipe.method == "single":
        if recipe.single.learning_rate <= 0.0:
            raise refuse(
                f"single.learning_rate = {recipe.single.learning_rate}:"
                ' method = "single" needs a learning rate above 0'
            )
        if recipe.single.nesterov and recipe.single.momentum == 0.0:
            raise refuse("single.nesterov = true: needs a single.momentum above 0")
        if recipe.single.optimizer == "adam" and recipe.single.momentum > 0.0:
            raise refuse(
                f"single.momentum = {recipe.single.momentum}: adam takes no momentum"
                " (its betas are fixed at 0.9 and 0.999); remove the key"
            )
        for name, value in recipe.single.hyperparameters.items():
            check_drawn(name, Choice([value]), f"{source}: single.hyperparameters.{name}")
    elif not recipe.sgd.optimizers:
        raise refuse("sgd.optimizers is empty: give at least one [[sgd.optimizers]] table")
    elif sum(o.weight for o in recipe.sgd.optimizers) <= 0.0:
        raise refuse("sgd.optimizers: the weights add up to 0; give one of them a weight above 0")
    for index, optimizer in enumerate(recipe.sgd.optimizers):
        key = f"sgd.optimizers.{index}"
        rate = optimizer.learning_rate
        if optimizer.learning_rate_distribution == "log-uniform" and rate.low <= 0.0:
            raise refuse(f"{key}.learning_rate = {rate.plain()}: log-uniform needs a low above 0")
        if optimizer.name == "adam" and optimizer.momentum.high > 0.0:
            raise refuse(
                f"{key}.momentum = {optimizer.momentum.plain()}: adam draws no momentum"
                " (its betas are fixed at 0.9 and 0.999); remove the key"
            )
    mu = recipe.num_parents
    rho = recipe.evolution.parents_per_child
    rhos = (rho,) if isinstance(rho, int) else rho
    if not rhos:
        raise refuse("evolution.parents_per_child = []: give at least one number")
    if recipe.method == "esgd" and max(rhos) > mu:
        raise refuse(
            f"evolution.parents_per_child = {max(rhos)} is more than population.parents = {mu};"
            " the parents of a child are distinct"
        )
    if recipe.evolution.elite_fraction * mu < 0.5 and recipe.method == "esgd":
        raise refuse(
            f"evolution.elite_fraction = {recipe.evolution.elite_fraction}: round(elite_fraction x"
            f" parents) = round({recipe.evolution.elite_fraction} x {mu}) = 0; the elite needs one"
        )
    if recipe.population.initial_weights and recipe.population.initialization != "perturb":
        raise refuse(
            f'population.initial_weights = "{recipe.population.initial_weights}" is only used with'
            ' population.initialization = "perturb"'
        )
