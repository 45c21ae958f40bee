"""What a recipe holds: every key with its default and its meaning.

Symbols in the field notes are those of the paper (Algorithm 1, Eq. 12, Tables 2-5). `recipe_file`
reads recipes and `recipe_checks` says what they may hold.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec


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


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One table of the recipe."""


class PopulationSettings(Table, frozen=True, kw_only=True):
    parents: int = 16
    """mu, the size of the population."""
    offspring: int = 64
    """lambda, the children of one evolution step."""
    initialization: Literal["random", "perturb"] = "random"
    """random: every individual is a new network; perturb: all are one network plus noise."""
    initial_weights: str = ""
    """perturb: a .safetensors file of that network; empty for a random one."""
    perturbation_strength: Range = Range(0.01)
    """perturb: standard deviation of the noise, drawn for each individual."""


class OptimizerSettings(Table, frozen=True, kw_only=True):
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


class SgdSettings(Table, frozen=True, kw_only=True):
    epochs: int = 1
    """K_s."""
    batch_size: Range = Range(128)
    """Samples of one step over the whole group."""
    backoff_probability: float = 1.0
    """p_backoff: an epoch that made the fitness worse is undone with this probability."""
    milestones: tuple[int, ...] = ()
    """SGD epochs of the whole run, ascending, after each of which learning rates are multiplied by
    `milestone_factor` from there on. Fine-tuning with an optimizer of its own has none."""
    milestone_factor: float = 0.1
    patience: Range = Range(0)
    """Epochs in a row without a new best after which the learning rate of an individual is
    multiplied by `patience_factor` for the rest of its SGD step, where counting begins anew; that
    of method "single" for good. 0: never."""
    patience_factor: float = 0.1
    gradient_clip: float = 0.0
    """Largest norm of a gradient, which is scaled down to it; 0: any."""
    optimizers: tuple[OptimizerSettings, ...] = ()
    hyperparameters: dict[str, Drawn] = {}
    """[low, high] or { choice = [...] } in place of what the task declares, by name."""


class EvolutionSettings(Table, frozen=True, kw_only=True):
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


class FitnessSettings(Table, frozen=True, kw_only=True):
    data: Literal["validation", "training"] = "validation"
    batch_size: int = 512
    """Samples scored at once; part of the result."""


class FineTuningSettings(Table, frozen=True, kw_only=True):
    epochs: int = 0
    """SGD epochs of every individual after the last generation. The methods "population" and
    "single" spend them with their own optimizers instead of the one below."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 1e-5


class SingleSettings(Table, frozen=True, kw_only=True):
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


class AnchorSettings(Table, frozen=True, kw_only=True):
    weights: str = ""
    """A .safetensors file of a model that joins the parents of every evolution step, untrained."""


class TopologySettings(Table, frozen=True, kw_only=True):
    ranks_per_group: int = 1
    gradient_averaging: Literal["auto", "horovod", "torch", "mpi"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads_per_rank: int = 1
    """CPU threads of torch; another number may change last bits."""
    deterministic: bool = True
    """Ask torch for deterministic kernels on GPUs."""
    share_gpus: bool = False
    """Let several ranks of a node compute on one GPU, where there are fewer GPUs than ranks."""


class CheckpointSettings(Table, frozen=True, kw_only=True):
    every: int = 1
    """Generations from one checkpoint to the next; the last one is always written."""
    every_minutes: float = 0.0
    """Minutes from one checkpoint to the next, at the end of a generation; 0: `every` counts."""
    keep: int = 2
    """Newest complete checkpoints that stay."""
    background: bool = True
    """Write while the next generation trains; a leader then holds its individuals up to twice."""


class LoggingSettings(Table, frozen=True, kw_only=True):
    tensorboard: bool = False
    """Also log each generation for TensorBoard, in the folder `tensorboard` of the output."""


class RunSettings(Table, frozen=True, kw_only=True):
    """How a job gets along with its scheduler."""

    time_limit: float = 0.0
    """Minutes from the start of `esgd run` to its end; it stops in time, with what is done saved.
    0: the end of the scheduler's job, where that is known."""
    watchdog: float = 15.0
    """Minutes without progress of a rank after which it is named and the job ended; 0: never."""


class Recipe(Table, frozen=True, kw_only=True):
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
    logging: LoggingSettings = LoggingSettings()
    run: RunSettings = RunSettings()

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


STEP_SETTINGS = ("batch_size", "weight_decay", "patience")
"""Hyper-parameters that any draw may cover, and that the SGD step itself uses."""

FREE_KEYS = ("topology", "checkpoint", "logging", "run")
"""Tables that may differ between the runs of one output folder: they do not define the result."""


def _encode(value: Any) -> Any:
    if isinstance(value, Range | Choice):
        return value.plain()
    raise TypeError(f"no writer for {type(value)}")


def recipe_data(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as nested plain mappings, every key present."""
    data: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(recipe, enc_hook=_encode))
    return data


class Difference(NamedTuple):
    """A key in which two recipes differ; None stands for an absent value."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {short(self.old)} -> {short(self.new)}"


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[Difference]:
    """Return each key that defines the result and differs.

    Both are from `recipe_data`. Tables of `FREE_KEYS` are left out. Entries of lists of tables are
    compared one by one where there are as many, under keys as `--set` names them.
    """
    found: list[Difference] = []
    for name in sorted({*old, *new}):
        key = f"{prefix}{name}"
        if key in FREE_KEYS:
            continue
        a, b = _as_tables(old.get(name), new.get(name))
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{key}.")
        elif a != b or (prefix.startswith("sgd.hyperparameters.") and repr(a) != repr(b)):
            # There [1, 2] draws whole numbers and [1.0, 2.0] does not.
            found.append(Difference(key, a, b))
    return found


def _as_tables(old: Any, new: Any) -> tuple[Any, Any]:
    """Return lists of as many tables as tables of numbered entries, anything else as it is."""
    lists = isinstance(old, list) and isinstance(new, list) and len(old) == len(new)
    if not lists or not all(isinstance(entry, Mapping) for entry in (*old, *new)):
        return old, new
    return tuple({str(n): entry for n, entry in enumerate(part)} for part in (old, new))  # type: ignore[return-value]


def short(value: Any) -> str:
    """Return a value for a message, in at most 60 characters."""
    try:
        text = repr(value).replace("'", '"')
    except (RecursionError, ValueError):  # nested too deep, or a number of too many digits
        return "..."
    return text if len(text) <= 60 else text[:57] + "..."
