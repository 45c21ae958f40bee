"""The optimizer pool: which optimizer and hyper-parameters an individual trains with (section 3.3).

Pure functions; a draw depends on the recipe, the task, the seed, the generation and the uid alone.
"""

import math
import zlib
from collections.abc import Mapping

import numpy as np

from esgd_hpc import rng
from esgd_hpc.config import STEP_SETTINGS, Choice, Drawn, OptimizerSettings, Range, Recipe
from esgd_hpc.errors import InputError
from esgd_hpc.population import Draw, HyperparameterValue, Individual
from esgd_hpc.recipe_checks import check_drawn


def drawn_hyperparameters(recipe: Recipe, declared: Mapping[str, Drawn]) -> dict[str, Drawn]:
    """Return what a draw covers besides the optimizer: the task's, with the recipe's ranges.

    Raises InputError for a name in the recipe that the task does not declare.
    """
    known = {*declared, *STEP_SETTINGS}
    for table, values in (
        ("sgd", recipe.sgd.hyperparameters),
        ("single", recipe.single.hyperparameters),
    ):
        for name, value in values.items():
            if name not in known:
                raise InputError(
                    f"{table}.hyperparameters.{name} = {value}: task {recipe.task} declares no such"
                    f" hyper-parameter; known are {', '.join(sorted(known))}"
                )
    for name, drawn in declared.items():
        if not isinstance(drawn, Drawn):
            raise InputError(
                f"task {recipe.task}: hyperparameters[{name!r}] = {drawn!r}: expected a"
                " Range(low, high) or a Choice([...]) of esgd_hpc"
            )
        check_drawn(name, drawn, f"task {recipe.task}: hyperparameters[{name!r}]")
    return {**declared, **recipe.sgd.hyperparameters}


def milestone_scale(recipe: Recipe, generation: int, epoch: int) -> float:
    """Return what milestones multiply the learning rate by, in an epoch of a generation.

    Both count from 1. Epochs count on over generations, K_s in each.
    """
    if generation > recipe.generations and recipe.method in ("esgd", "sgd-only"):
        return 1.0  # fine-tuning has its own learning rate
    done = (generation - 1) * recipe.sgd.epochs + epoch - 1
    passed = sum(done >= milestone for milestone in recipe.sgd.milestones)
    return recipe.sgd.milestone_factor**passed


def draw_optimizer(
    recipe: Recipe, hyperparameters: Mapping[str, Drawn], generation: int, individual: Individual
) -> Draw:
    """Return what the individual trains with in the SGD step of this generation.

    `hyperparameters` is the result of `drawn_hyperparameters`. Generations count from 1; the one
    after the last is fine-tuning. The baselines keep what they have: "population" its first draw
    with the learning rate annealed, "single" its last, whose learning rate the SGD step halves.
    """
    if recipe.method == "single":
        return individual.draw or _single(recipe)
    if recipe.method == "population":
        return _from_pool(recipe, hyperparameters, 1, individual.uid, anneal=generation)
    if generation > recipe.generations:
        draw = _from_pool(recipe, hyperparameters, generation, individual.uid, anneal=generation)
        return Draw(
            optimizer=recipe.fine_tuning.optimizer,
            learning_rate=recipe.fine_tuning.learning_rate,
            weight_decay=draw.weight_decay,
            batch_size=draw.batch_size,
            hyperparameters=draw.hyperparameters,
        )
    return _from_pool(recipe, hyperparameters, generation, individual.uid, anneal=generation)


def _from_pool(
    recipe: Recipe, hyperparameters: Mapping[str, Drawn], generation: int, uid: int, anneal: int
) -> Draw:
    stream = rng.stream(recipe.seed, generation, 0, uid, rng.Purpose.HYPERPARAMETERS)
    pool = recipe.sgd.optimizers
    weights = np.array([settings.weight for settings in pool])
    shares = weights / weights.max()
    settings = pool[int(stream.choice(len(pool), p=shares / shares.sum()))]
    learning_rate = _learning_rate(settings, stream) * settings.learning_rate_decay**anneal
    # Every value takes one number of the stream, drawn or not, so that none shifts another.
    has_momentum = stream.random() < settings.momentum_probability
    has_nesterov = stream.random() < settings.nesterov_probability
    momentum = _uniform(settings.momentum, stream)
    weight_decay = _uniform(settings.weight_decay, stream)
    batch_size = _draw(recipe.sgd.batch_size, stream)
    # One stream each: what one task or recipe adds does not shift the draws of the others.
    extra = {
        name: _draw(drawn, _stream_of(recipe.seed, generation, uid, name))
        for name, drawn in sorted(hyperparameters.items())
    }
    if recipe.sgd.patience.high > 0 and "patience" not in extra:
        extra["patience"] = _draw(
            recipe.sgd.patience, _stream_of(recipe.seed, generation, uid, "patience")
        )
    momentum = momentum if has_momentum else 0.0
    return Draw(
        optimizer=settings.name,
        learning_rate=learning_rate,
        momentum=momentum,
        nesterov=has_nesterov and momentum > 0.0,
        weight_decay=float(extra.pop("weight_decay", weight_decay)),
        batch_size=int(extra.pop("batch_size", batch_size)),
        hyperparameters=extra,
    )


def _single(recipe: Recipe) -> Draw:
    settings = recipe.single
    extra = dict(settings.hyperparameters)
    if recipe.sgd.patience.high > 0:
        extra.setdefault("patience", int(recipe.sgd.patience.low))
    return Draw(
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=float(extra.pop("weight_decay", settings.weight_decay)),
        batch_size=int(extra.pop("batch_size", recipe.sgd.batch_size.low)),
        hyperparameters=extra,
    )


def _learning_rate(settings: OptimizerSettings, stream: np.random.Generator) -> float:
    low, high = settings.learning_rate.low, settings.learning_rate.high
    if settings.learning_rate_distribution == "log-uniform":
        rate = math.exp(stream.uniform(math.log(low), math.log(high)))
        return min(max(rate, low), high)  # rounding may leave the range
    return _uniform(settings.learning_rate, stream)


def _stream_of(seed: int, generation: int, uid: int, name: str) -> np.random.Generator:
    lane = zlib.crc32(name.encode()) + 1  # 0 is that of the optimizer
    return rng.stream(seed, generation, 0, uid, rng.Purpose.HYPERPARAMETERS, lane)


def _uniform(drawn: Range, stream: np.random.Generator) -> float:
    return float(stream.uniform(drawn.low, drawn.high))


def _draw(drawn: Drawn, stream: np.random.Generator) -> HyperparameterValue:
    if isinstance(drawn, Choice):
        return drawn.values[int(stream.random() * len(drawn.values))]
    assert isinstance(drawn, Range)
    if drawn.whole:
        return int(drawn.low) + int(stream.random() * (drawn.high - drawn.low + 1))
    return _uniform(drawn, stream)
