"""The optimizer pool: which optimizer and hyper-parameters an individual trains with (section 3.3).

Pure functions; a draw depends on the recipe, the task, the seed, the generation and the uid alone.
"""

import math
from collections.abc import Mapping

import numpy as np

from esgd_hpc import rng
from esgd_hpc.config import Choice, Drawn, OptimizerSettings, Range, Recipe
from esgd_hpc.errors import InputError
from esgd_hpc.population import Draw, HyperparameterValue, Individual


def drawn_hyperparameters(recipe: Recipe, declared: Mapping[str, Drawn]) -> dict[str, Drawn]:
    """Return what a draw covers besides the optimizer: the task's, with the recipe's ranges.

    Raises InputError for a name in the recipe that the task does not declare.
    """
    known = {*declared, "batch_size", "weight_decay"}
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
    return {**declared, **recipe.sgd.hyperparameters}


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
    wheel = np.cumsum([settings.weight for settings in pool])
    settings = pool[int(np.searchsorted(wheel, stream.random() * wheel[-1], side="right"))]
    learning_rate = _learning_rate(settings, stream) * settings.learning_rate_decay**anneal
    # Every draw takes the same numbers from the stream, so that one setting does not shift another.
    has_momentum = stream.random() < settings.momentum_probability
    has_nesterov = stream.random() < settings.nesterov_probability
    momentum = float(_draw(settings.momentum, stream))
    weight_decay = float(_draw(settings.weight_decay, stream))
    batch_size = int(_draw(recipe.sgd.batch_size, stream))
    extra = {name: _draw(hyperparameters[name], stream) for name in sorted(hyperparameters)}
    weight_decay = float(extra.pop("weight_decay", weight_decay))
    batch_size = int(extra.pop("batch_size", batch_size))
    if not has_momentum:
        momentum = 0.0
    return Draw(
        optimizer=settings.name,
        learning_rate=learning_rate,
        momentum=momentum,
        nesterov=has_nesterov and momentum > 0.0,
        weight_decay=weight_decay,
        batch_size=batch_size,
        hyperparameters=extra,
    )


def _single(recipe: Recipe) -> Draw:
    settings = recipe.single
    return Draw(
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        batch_size=int(recipe.sgd.batch_size.low),
        hyperparameters=recipe.single.hyperparameters,
    )


def _learning_rate(settings: OptimizerSettings, stream: np.random.Generator) -> float:
    low, high = settings.learning_rate.low, settings.learning_rate.high
    if settings.learning_rate_distribution == "log-uniform":
        return math.exp(stream.uniform(math.log(low), math.log(high)))
    return float(stream.uniform(low, high))


def _draw(drawn: Drawn, stream: np.random.Generator) -> HyperparameterValue:
    if isinstance(drawn, Choice):
        return drawn.values[int(stream.integers(len(drawn.values)))]
    assert isinstance(drawn, Range)
    if drawn.whole:
        return int(stream.integers(int(drawn.low), int(drawn.high), endpoint=True))
    return float(stream.uniform(drawn.low, drawn.high))
