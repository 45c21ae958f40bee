"""The recipe: every key, its bounds, and how a TOML file and `--set` become one checked object.

Symbols in the field notes are those of the paper (Algorithm 1, Eq. 12, Tables 2-5).
"""

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from esgd_hpc.errors import InputError


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a whole number beyond float64
        return False


class Drawn:
    """What a hyper-parameter is drawn from: a `Range` or a `Choice`."""

    __slots__ = ()

    def plain(self) -> Any:
        """Return what a recipe file would hold."""
        raise NotImplementedError

    def ends(self) -> tuple[Any, Any]:
        """Return the lowest and highest, or the first and last, value that a draw can give."""
        raise NotImplementedError


class Range(Drawn):
    """A number to draw: fixed, or uniform in [low, high]; whole where both bounds are whole."""

    __slots__ = ("high", "low", "whole")

    def __init__(self, low: float, high: float | None = None) -> None:
        high = low if high is None else high
        if not (_is_finite(low) and _is_finite(high) and low <= high):
            raise ValueError("expected a finite number or [low, high] with low <= high")
        self.low, self.high = low, high
        self.whole = isinstance(low, int) and isinstance(high, int)

    def plain(self) -> float | list[float]:
        """Return what a recipe file would hold."""
        return self.low if self.low == self.high else [self.low, self.high]

    def ends(self) -> tuple[float, float]:
        """Return the bounds."""
        return self.low, self.high

    def __eq__(self, other: object) -> bool:
        # 1 and 1.0 are told apart: they draw differently.
        return isinstance(other, Range) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"Range({self.low}, {self.high})"


class Choice(Drawn):
    """Values of which a draw takes one, all equally likely."""

    __slots__ = ("values",)

    def __init__(self, values: Iterable[float | str | bool]) -> None:
        self.values = tuple(values)
        if not self.values or not all(isinstance(v, int | float | str) for v in self.values):
            raise ValueError("expected { choice = [...] } with numbers, texts or true and false")

    def plain(self) -> dict[str, list[float | str | bool]]:
        """Return what a recipe file would hold."""
        return {"choice": list(self.values)}

    def ends(self) -> tuple[float | str | bool, float | str | bool]:
        """Return the first and the last value."""
        return self.values[0], self.values[-1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Choice) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"Choice({list(self.values)})"


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One table of the recipe."""


class PopulationSettings(_Table, frozen=True, kw_only=True):
    parents: int = 16
    """mu, the size of the population."""
    offspring: int = 64
    """lambda, the children of one evolution step."""
    initialization: Literal["random", "perturb"] = "random"
    """random: every individual is a new network; perturb: all are one network plus noise."""
    initial_weights: str = ""
    """perturb: a .safetensors file of that network; empty for a random one."""
    perturbation_strength: float = 0.01
    """perturb: standard deviation of the noise."""


class OptimizerSettings(_Table, frozen=True, kw_only=True):
    name: Literal["sgd", "adam"]
    weight: float = 1.0
    """Share of draws among the optimizers of the pool."""
    learning_rate: Range
    """[a_0, b_0]."""
    learning_rate_decay: float = 1.0
    """gamma: generation k draws from gamma^k [a_0, b_0]."""
    learning_rate_distribution: Literal["uniform", "log-uniform"] = "uniform"
    momentum: Range = Range(0.0)
    momentum_probability: float = 1.0
    """p_momentum: without it the momentum is 0."""
    nesterov_probability: float = 0.0
    """p_Nesterov, among the draws that have momentum."""
    weight_decay: Range = Range(0.0)


class SgdSettings(_Table, frozen=True, kw_only=True):
    epochs: int = 1
    """K_s."""
    batch_size: Range = Range(128)
    """Samples of one step over the whole group."""
    backoff_probability: float = 1.0
    """p_backoff: an epoch that made the fitness worse is undone with this probability."""
    optimizers: tuple[OptimizerSettings, ...] = ()
    hyperparameters: dict[str, Drawn] = {}
    """[low, high] or { choice = [...] } in place of what the task declares, by name."""


class EvolutionSettings(_Table, frozen=True, kw_only=True):
    steps: int = 1
    """K_v."""
    parents_per_child: int | tuple[int, ...] = 2
    """rho, or a list to draw it from."""
    selection: Literal["inverse", "window", "rank", "softmax"] = "inverse"
    smoothing: float = 1.0
    """Power of the selection score."""
    mutation_strength: Range = Range(0.01)
    """sigma_0; sigma_k = sigma_0 / k is the standard deviation in generation k."""
    elite_fraction: float = 0.6
    """m / mu."""
    batchnorm: Literal["average", "recalibrate"] = "average"
    """Running statistics of a child: mean of its parents', or estimated again on training data."""
    recalibration_batches: int = 8
    """recalibrate: training batches that the estimate is made from."""


class FitnessSettings(_Table, frozen=True, kw_only=True):
    data: Literal["validation", "training"] = "validation"
    batch_size: int = 512
    """Samples scored at once; part of the result."""


class FineTuningSettings(_Table, frozen=True, kw_only=True):
    epochs: int = 0
    """SGD epochs of every individual after the last generation. The methods "population" and
    "single" spend them with their own optimizers instead of the one below."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 1e-5


class SingleSettings(_Table, frozen=True, kw_only=True):
    """The paper's single baseline (section 4.1), for method = "single"."""

    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.0
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    learning_rate_factor: float = 0.5
    """What the learning rate is multiplied by after an epoch that was backed off."""
    hyperparameters: dict[str, int | float | str | bool] = {}
    """Values for what the task declares; what is absent stays as the model has it."""


class AnchorSettings(_Table, frozen=True, kw_only=True):
    weights: str = ""
    """A .safetensors file of a model that joins the parents of every evolution step, untrained."""


class TopologySettings(_Table, frozen=True, kw_only=True):
    ranks_per_group: int = 1
    gradient_averaging: Literal["auto", "horovod", "torch", "mpi"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads_per_rank: int = 1
    """CPU threads of torch; another number may change last bits."""
    deterministic: bool = True
    """Ask torch for deterministic kernels on GPUs."""


class CheckpointSettings(_Table, frozen=True, kw_only=True):
    every: int = 1
    """Generations from one checkpoint to the next; the last one is always written."""
    keep: int = 2
    """Newest complete checkpoints that stay."""


class Recipe(_Table, frozen=True, kw_only=True):
    """All that defines a run. Make one with `load_recipe` or `recipe_from`."""

    task: str
    """A built-in task, or "package.module:factory"."""
    method: Literal["esgd", "sgd-only", "population", "single"] = "esgd"
    seed: int = 1
    generations: int = 10
    """K."""
    task_options: dict[str, Any] = {}
    """Keyword arguments of the task's factory."""
    population: PopulationSettings = PopulationSettings()
    sgd: SgdSettings = SgdSettings()
    evolution: EvolutionSettings = EvolutionSettings()
    fitness: FitnessSettings = FitnessSettings()
    fine_tuning: FineTuningSettings = FineTuningSettings()
    single: SingleSettings = SingleSettings()
    anchor: AnchorSettings = AnchorSettings()
    topology: TopologySettings = TopologySettings()
    checkpoint: CheckpointSettings = CheckpointSettings()

    @property
    def num_parents(self) -> int:
        """mu; 1 for method "single"."""
        return 1 if self.method == "single" else self.population.parents

    @property
    def num_elite(self) -> int:
        """m = round(elite_fraction mu), at least 1."""
        return max(1, round(self.evolution.elite_fraction * self.num_parents))

    @property
    def last_generation(self) -> int:
        """Number of the last generation; fine-tuning, where asked for, is one more."""
        return self.generations + (1 if self.fine_tuning.epochs else 0)


FREE_KEYS = ("topology", "checkpoint")
"""Tables that may differ between the runs of one output folder: they do not define the result."""

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
    "checkpoint.keep": (1, 10**6),
}


# Reading ------------------------------------------------------------------------------------------


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("esgd_hpc") / "recipes"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def recipe_text(name_or_path: str) -> str:
    """Return the TOML text of a packaged recipe or of a file."""
    if name_or_path in recipe_names():
        return (resources.files("esgd_hpc") / "recipes" / f"{name_or_path}.toml").read_text("utf-8")
    path = Path(name_or_path)
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise InputError(
            f"recipe {name_or_path}: no such file, and no recipe of this name"
            f"{_nearest(name_or_path, recipe_names())}; `esgd recipes` lists the names"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"recipe {name_or_path}: cannot be read as text: {error}") from None


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """Return the checked recipe of a packaged name or a TOML file, with KEY=VALUE overrides.

    Raises InputError that names the key, its value and the remedy.
    """
    try:
        data = tomllib.loads(recipe_text(name_or_path))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"recipe {name_or_path}: not valid TOML: {error}") from None
    for override in overrides:
        _apply_override(data, override)
    return recipe_from(data, source=f"recipe {name_or_path}")


def recipe_from(data: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Return the checked recipe of nested mappings as a TOML file holds them."""
    _refuse_unknown_keys(data, Recipe, "", source)
    _check_hyperparameters(data, source)
    try:
        recipe = msgspec.convert(data, Recipe, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise InputError(f"{source}: {_with_key(str(error), data)}") from None
    _check_bounds(recipe, source)
    _check_together(recipe, source)
    return recipe


def _decode(kind: Any, value: Any) -> Any:
    if kind is Range:
        if _is_number(value):
            return Range(value)
        if isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
            return Range(*value)
        raise ValueError("expected a number or [low, high]")
    if kind is Drawn:
        if isinstance(value, Mapping):
            if set(value) != {"choice"} or not isinstance(value["choice"], list):
                raise ValueError("expected a number, [low, high] or { choice = [...] }")
            return Choice(value["choice"])
        if isinstance(value, str | bool):
            return Choice([value])
        return _decode(Range, value)
    raise TypeError(f"no reader for {kind}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _encode(value: Any) -> Any:
    if isinstance(value, Range | Choice):
        return value.plain()
    raise TypeError(f"no writer for {type(value)}")


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"--set {override}: expected KEY=VALUE, such as --set sgd.epochs=2")
    try:
        (value,) = tomllib.loads(f"value = {text}").values()
    except (ValueError, RecursionError):
        raise InputError(
            f"--set {_short(override)}: {_short(text)} is not a TOML value;"
            f""" text needs quotes that the shell keeps: --set {key}='"{text.strip()}"'"""
        ) from None
    *parents, last = key.split(".")
    place: Any = data
    for part in parents:
        if isinstance(place, list):
            place = _item(place, part, override)
        elif isinstance(place, dict):
            place = place.setdefault(part, {})
    if isinstance(place, list):
        _item(place, last, override)
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise InputError(f"--set {override}: {'.'.join(parents)} is a value, not a table")


def _item(place: list[Any], part: str, override: str) -> Any:
    if not part.isdecimal() or int(part) >= len(place):
        raise InputError(
            f"--set {override}: {part} is not one of the {len(place)} entries,"
            " which are numbered from 0"
        )
    return place[int(part)]


# Checking -----------------------------------------------------------------------------------------


def _refuse_unknown_keys(data: Any, table: type[_Table], prefix: str, source: str) -> None:
    """Name the nearest known key; msgspec alone would only say that a field is unknown."""
    if not isinstance(data, Mapping):
        return
    hints = get_type_hints(table)
    for name, value in data.items():
        key = f"{prefix}{name}"
        if name not in hints:
            raise InputError(
                f"{source}: unknown key {key} = {_short(value)}{_nearest(name, hints, prefix)}"
            )
        kind = hints[name]
        if isinstance(kind, type) and issubclass(kind, _Table):
            _refuse_unknown_keys(value, kind, f"{key}.", source)
        elif get_origin(kind) is tuple and isinstance(value, list):
            for index, item in enumerate(value):
                _refuse_unknown_keys(item, get_args(kind)[0], f"{key}.{index}.", source)


def _check_hyperparameters(data: Mapping[str, Any], source: str) -> None:
    """Name the hyper-parameter that cannot be drawn; msgspec would only name their table."""
    sgd = data.get("sgd")
    table = sgd.get("hyperparameters") if isinstance(sgd, Mapping) else None
    for name, value in table.items() if isinstance(table, Mapping) else ():
        key = f"sgd.hyperparameters.{name}"
        try:
            drawn = _decode(Drawn, value)
        except ValueError as error:
            raise InputError(f"{source}: {key} = {_short(value)}: {error}") from None
        check_drawn(name, drawn, f"{source}: {key}")


def check_drawn(name: str, drawn: Drawn, key: str) -> None:
    """Raise InputError if `batch_size` or `weight_decay` could be drawn as what it cannot be."""
    values: tuple[Any, ...] = drawn.values if isinstance(drawn, Choice) else _numbers(drawn)
    if name == "batch_size":
        fits = all(type(v) is int and 1 <= v <= 2**31 for v in values)
        wanted = "whole numbers from 1 to 2147483648"
    elif name == "weight_decay":
        fits = all(_is_number(v) and v >= 0.0 for v in values)
        wanted = "numbers of at least 0"
    else:
        return
    if not fits:
        raise InputError(f"{key} = {drawn.plain()}: expected {wanted}")


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{found[0]}?" if found else ""


def _with_key(message: str, data: Any) -> str:
    """Turn msgspec's "expected ... - at `$.a.b[0].c`" into "a.b.0.c = value: expected ..."."""
    what, _, path = message.partition(" - at `$")
    what = what.replace("`object`", "a table").replace("array", "list").replace("`", "")
    if not path:
        return message
    key = path.rstrip("`").replace("[...]", "").strip(".").replace("[", ".").replace("]", "")
    value: Any = data
    for part in key.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return f"{key}: {what}"
    hint = _expected_values(key)
    return f"{key} = {_short(value)}: {what[0].lower()}{what[1:]}{hint}"


def _expected_values(key: str) -> str:
    kind: Any = Recipe
    for part in key.split("."):
        if part.isdecimal():
            kind = get_args(kind)[0] if get_args(kind) else None
        else:
            kind = get_type_hints(kind).get(part) if isinstance(kind, type) else None
        if kind is None:
            return ""
    if get_origin(kind) is Literal:
        return f"; one of {', '.join(get_args(kind))}"
    return ""


def _short(value: Any) -> str:
    try:
        text = repr(value).replace("'", '"')
    except (RecursionError, ValueError):  # nested too deep, or a number of too many digits
        return "..."
    return text if len(text) <= 60 else text[:57] + "..."


def _values(table: _Table, prefix: str = "") -> Iterable[tuple[str, str, Any]]:
    """Yield (key, key with * for indices, value) of every leaf."""
    for name in table.__struct_fields__:
        value = getattr(table, name)
        if isinstance(value, _Table):
            for key, pattern, leaf in _values(value, f"{name}."):
                yield f"{prefix}{key}", f"{prefix}{pattern}", leaf
        elif isinstance(value, tuple) and value and isinstance(value[0], _Table):
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


def _check_bounds(recipe: Recipe, source: str) -> None:
    for key, pattern, value in _values(recipe):
        for number in _numbers(value):
            if isinstance(number, float) and not math.isfinite(number):
                raise InputError(f"{source}: {key} = {_short(value)}: expected finite numbers")
            if pattern in _BOUNDS:
                low, high = _BOUNDS[pattern]
                if not low <= number <= high:
                    shown = value.plain() if isinstance(value, Range) else value
                    limit = f"at least {low}" if math.isinf(high) else f"from {low} to {high}"
                    raise InputError(f"{source}: {key} = {shown}: expected a number {limit}")


def _check_together(recipe: Recipe, source: str) -> None:
    """Check what depends on more than one key."""

    def refuse(text: str) -> InputError:
        return InputError(f"{source}: {text}")

    if not recipe.task:
        raise refuse('task = "": name a built-in task or "package.module:factory"')
    if not recipe.sgd.batch_size.whole:
        raise refuse(f"sgd.batch_size = {recipe.sgd.batch_size.plain()}: expected whole numbers")
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


# Writing and comparing ----------------------------------------------------------------------------


def recipe_data(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as nested plain mappings, every key present."""
    data: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(recipe, enc_hook=_encode))
    return data


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return "key: old -> new" for each key that defines the result and differs.

    Both are from `recipe_data`. Tables of `FREE_KEYS` are left out.
    """
    found: list[str] = []
    for name in sorted({*old, *new}):
        key = f"{prefix}{name}"
        if key in FREE_KEYS:
            continue
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differing_keys(a, b, f"{key}.")
        elif a != b or (prefix.startswith("sgd.hyperparameters.") and repr(a) != repr(b)):
            # There [1, 2] draws whole numbers and [1.0, 2.0] does not.
            found.append(f"{key}: {_short(a)} -> {_short(b)}")
    return found
