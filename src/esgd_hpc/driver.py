"""The generation loop: Algorithm 1 over the ranks of a world."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import msgspec
import numpy as np

from esgd_hpc.config import Drawn, Recipe
from esgd_hpc.errors import RunError
from esgd_hpc.evolution.operators import elite_average
from esgd_hpc.evolution.step import Anchor, evolution_step
from esgd_hpc.learner import Learner
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import GenerationRow, Individual, Population
from esgd_hpc.sgd.step import sgd_step


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What the loop works with; complete on every rank."""

    recipe: Recipe
    hyperparameters: Mapping[str, Drawn]
    topology: Topology
    learner: Learner
    anchor: Anchor | None
    save: Callable[[Population, list[GenerationRow]], None]
    """Writes a checkpoint; collective over the world."""
    report: Callable[[Population, list[GenerationRow]], None]
    """Shows a finished generation on rank 0."""
    should_stop: Callable[[], bool]
    """Whether this rank was asked to stop."""


def evolve(population: Population, history: list[GenerationRow], setting: Setting) -> bool:
    """Carry the population from its generation to the last one, in place.

    Returns whether it got there; if not, it was asked to stop and left a checkpoint.
    Collective over the world.
    """
    recipe, topology = setting.recipe, setting.topology
    for k in range(population.generation + 1, recipe.last_generation + 1):
        before = population.individuals
        seconds: dict[str, float] = {}
        with _timed(seconds, "sgd"):
            sgd_step(population, k, recipe, setting.hyperparameters, topology, setting.learner)
        if recipe.method == "esgd" and k <= recipe.generations:
            with _timed(seconds, "evolution"):
                for v in range(1, recipe.evolution.steps + 1):
                    evolution_step(
                        population, k, v, recipe, topology, setting.learner, setting.anchor
                    )
        population.generation = k
        history.append(generation_row(population, before, recipe, seconds))
        check_theorem_1(history[-1], before, population.individuals, recipe)
        last = k == recipe.last_generation
        stop = any(topology.world.allgather(setting.should_stop())) and not last
        if last or stop or k % recipe.checkpoint.every == 0:
            with _timed(seconds, "checkpoint"):
                setting.save(population, history)
        setting.report(population, history)
        if stop:
            return False
    return True


def generation_row(
    population: Population,
    before: list[Individual] | None,
    recipe: Recipe,
    seconds: dict[str, float],
) -> GenerationRow:
    """Return what the history keeps of a generation; `before` is the population before it."""
    ranked = sorted(population.individuals, key=lambda i: (i.fitness, i.uid))
    elite = ranked[: recipe.num_elite]
    fitness = np.array([i.fitness for i in ranked])
    average = elite_average(fitness, recipe.num_elite)
    born_now = sum(i.origin == "offspring" and i.born == population.generation for i in elite)
    best = ranked[0]
    return GenerationRow(
        generation=population.generation,
        best=best.fitness,
        elite_average=average,
        median=float(np.median(fitness)),
        worst=float(fitness[-1]),
        elite_offspring_fraction=born_now / len(elite) if before is not None else 0.0,
        best_uid=best.uid,
        best_optimizer=best.draw.optimizer if best.draw else "",
        best_learning_rate=best.draw.learning_rate if best.draw else 0.0,
        theorem_1_holds=before is None
        or average <= elite_average(np.array([i.fitness for i in before]), recipe.num_elite),
        seconds=seconds,
    )


def check_theorem_1(
    row: GenerationRow, before: list[Individual], after: list[Individual], recipe: Recipe
) -> None:
    """Raise RunError if the m-elitist average fitness rose although back-off is always applied.

    All fitnesses are of one fixed data set, so this is a defect of ours if it ever happens.
    """
    if row.theorem_1_holds or recipe.sgd.backoff_probability < 1.0:
        return

    def elite(individuals: list[Individual]) -> str:
        ranked = sorted(individuals, key=lambda i: (i.fitness, i.uid))[: recipe.num_elite]
        return ", ".join(f"{i.uid}: {i.fitness!r}" for i in ranked)

    raise RunError(
        f"internal error: Theorem 1 is violated in generation {row.generation}: the"
        f" {recipe.num_elite}-elitist average fitness rose to {row.elite_average!r};"
        f" elite before (uid: fitness) {elite(before)}; after {elite(after)}"
    )


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - started
