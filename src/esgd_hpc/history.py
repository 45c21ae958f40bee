"""What a run remembers of each generation: numbers, individuals, SGD steps, children.

Rows are the same on every rank. Everything else grows with mu and lambda, so rank 0 alone has it.
"""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Literal

import msgspec
import numpy as np

from esgd_hpc.config import Recipe
from esgd_hpc.evolution.operators import elite_average
from esgd_hpc.population import Draw, Individual, Origin, Population

OptimizerName = Literal["none", "sgd", "adam"]
OPTIMIZERS: tuple[OptimizerName, ...] = ("none", "sgd", "adam")
"""What an individual was last trained by; none before its first SGD step."""


EVOLUTION = ("planning", "exchange", "making", "scoring", "evolution_rest", "evolution")
"""Phases of an evolution step: rank 0 decides; waiting for weights; making children; scoring them;
the rest, which is above all waiting for other groups. The last is the whole step, in generations
that an older version made."""

TRAFFIC = ("moved", "least")
"""Of the bytes between groups: those that travel, and those that must."""

BirthOrigin = Literal["initial", "offspring", "anchor", "unknown"]


class GenerationRow(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of one generation; generation 0 is the initial population."""

    generation: int
    best: float
    """Fitness of the fittest individual of this generation."""
    best_ever: float
    """Fitness of the fittest state seen so far; below `best` only without full back-off."""
    elite_average: float
    """m-elitist average fitness (Definition 1)."""
    lower_quartile: float
    median: float
    upper_quartile: float
    worst: float
    elite_offspring_fraction: float
    """Share of the m-elite that are children of this generation (Figure 2)."""
    best_uid: int
    best_optimizer: OptimizerName
    best_learning_rate: float
    """Of its last SGD step, 0 before the first."""
    theorem_1_holds: bool
    """Whether `elite_average` did not rise against the generation before."""
    diversity: float = math.nan
    """Mean Euclidean distance of two individuals' parameters, by a sketch; NaN if not measured."""
    diversity_by_optimizer: dict[OptimizerName, float] = {}
    """The same among the individuals last trained by one optimizer."""
    individuals_by_optimizer: dict[OptimizerName, int] = {}
    seconds: dict[str, float] = {}
    """Wall time of rank 0 by phase: sgd, idle (how much of the SGD step a group waited for the
    slowest, on average; not in sgd), those of the evolution step, diversity, checkpoint (how long
    training waits for it; not yet known in the file that it is about)."""
    traffic: dict[str, int] = {}
    """Bytes of weights between groups: moved, and least, were each vector moved once at most."""

    @property
    def evolution_seconds(self) -> float | None:
        """Wall time of the evolution steps, None without any."""
        found = [self.seconds[phase] for phase in EVOLUTION if phase in self.seconds]
        return sum(found) if found else None


class Birth(msgspec.Struct, frozen=True, kw_only=True):
    """How an individual that was ever selected came into being."""

    uid: int
    born: int
    """Generation."""
    origin: BirthOrigin
    """unknown: from before the record, in a run that began in format 1."""
    parents: tuple[int, ...]
    noise_seed: str
    """128-bit key, decimal; with `sigma` and the parents enough to make it again."""
    sigma: float
    fitness: float
    """When it was first scored; NaN if that is not known."""


class SgdStep(msgspec.Struct, frozen=True, kw_only=True):
    """One individual's SGD step of one generation."""

    generation: int
    uid: int
    draw: Draw
    epochs: int
    """Epochs of this step, those backed off included."""
    back_offs: int
    """Epochs of this step that were undone."""
    fitness_before: float
    fitness: float
    """After the step."""
    seconds: float
    failure: str = ""
    """What went wrong, in at most 200 characters; empty if nothing did."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One individual of the population at the end of a generation."""

    uid: int
    fitness: float
    origin: Origin
    optimizer: OptimizerName
    learning_rate: float
    """Of its last SGD step, NaN before the first."""


class Offspring(msgspec.Struct, frozen=True, kw_only=True):
    """One child of a generation, selected or not."""

    uid: int
    fitness: float
    parents: tuple[int, ...]
    sigma: float
    selected: bool
    """Whether it survived the evolution step that made it."""


class RecipeChange(msgspec.Struct, frozen=True, kw_only=True):
    """A key of the recipe that was changed on purpose when the run went on."""

    generation: int
    """The last one made with the old value."""
    key: str
    old: str
    """JSON, null where the key was absent."""
    new: str


class History(msgspec.Struct, kw_only=True):
    """All that is remembered; other ranks than 0 have the rows alone."""

    rows: list[GenerationRow] = []
    survivors: list[tuple[Member, ...]] = []
    """One entry a row: the population in uid order."""
    offspring: list[tuple[Offspring, ...]] = []
    """One entry a row: all children in uid order."""
    births: list[Birth] = []
    """In the order of their uids."""
    steps: list[SgdStep] = []
    """In the order of generation and uid."""
    changes: list[RecipeChange] = []

    def copy(self) -> "History":
        """Return a history that does not grow with this one, nor do the seconds of its last row."""
        copied = {name: list(getattr(self, name)) for name in self.__struct_fields__}
        rows = [msgspec.structs.replace(row, seconds=dict(row.seconds)) for row in self.rows[-1:]]
        return History(**copied | {"rows": self.rows[:-1] + rows})

    def only_rows(self) -> "History":
        """Return what ranks other than 0 have."""
        return History(rows=list(self.rows))

    def remember(
        self,
        before: Sequence[Individual],
        trained: Sequence[Individual],
        offspring: Sequence[Individual],
        selected: Set[int],
        population: Population,
    ) -> None:
        """Add the details of a generation that ended with `population`. On rank 0.

        `before` is the population that the generation began with, `trained` the same individuals
        after the SGD step; both are empty for the initial population. `selected` has the uids of
        the population after each evolution step.
        """
        known = {birth.uid for birth in self.births}
        self.steps += map(_step, before, trained, [population.generation] * len(trained))
        self.survivors.append(tuple(map(_member, population.individuals)))
        self.offspring.append(
            tuple(_offspring(child, child.uid in selected) for child in _in_order(offspring))
        )
        firsts = {i.uid: i for i in (*population.individuals, *offspring)}
        self.births += [_birth(firsts[uid]) for uid in sorted(firsts.keys() & selected - known)]


def _in_order(individuals: Iterable[Individual]) -> list[Individual]:
    return sorted(individuals, key=lambda individual: individual.uid)


def _step(before: Individual, trained: Individual, generation: int) -> SgdStep:
    assert before.uid == trained.uid
    assert trained.draw is not None
    return SgdStep(
        generation=generation,
        uid=trained.uid,
        draw=trained.draw,
        epochs=trained.epochs - before.epochs,
        back_offs=trained.back_offs - before.back_offs,
        fitness_before=before.fitness,
        fitness=trained.fitness,
        seconds=trained.seconds,
        failure=trained.failure[:200],
    )


def optimizer_of(individual: Individual) -> OptimizerName:
    """Return what the individual was last trained by."""
    return individual.draw.optimizer if individual.draw else "none"


def _member(individual: Individual) -> Member:
    return Member(
        uid=individual.uid,
        fitness=individual.fitness,
        origin=individual.origin,
        optimizer=optimizer_of(individual),
        learning_rate=individual.draw.learning_rate if individual.draw else math.nan,
    )


def _offspring(child: Individual, selected: bool) -> Offspring:
    return Offspring(
        uid=child.uid,
        fitness=child.fitness,
        parents=child.parents,
        sigma=child.sigma,
        selected=selected,
    )


def _birth(individual: Individual) -> Birth:
    if individual.origin == "sgd":  # of a run that began in format 1
        origin: BirthOrigin = "offspring" if individual.parents else "unknown"
        fitness = math.nan
    else:
        origin, fitness = individual.origin, individual.fitness
    return Birth(
        uid=individual.uid,
        born=individual.born,
        origin=origin,
        parents=individual.parents,
        noise_seed=individual.noise_seed,
        sigma=individual.sigma,
        fitness=fitness,
    )


def generation_row(
    population: Population,
    before: Sequence[Individual] | None,
    recipe: Recipe,
    seconds: dict[str, float],
    diversity: Mapping[str, float] = {},
    traffic: Mapping[str, int] = {},
) -> GenerationRow:
    """Return the numbers of a generation.

    `before` is the population before it, None for the initial one; `diversity` is from
    `diversity.mean_distances`.
    """
    ranked = sorted(population.individuals, key=lambda i: (i.fitness, i.uid))
    elite = ranked[: recipe.num_elite]
    fitness = np.array([i.fitness for i in ranked])
    average = elite_average(fitness, recipe.num_elite)
    born_now = sum(i.origin == "offspring" and i.born == population.generation for i in elite)
    best = ranked[0]
    optimizers = [optimizer_of(i) for i in ranked]
    # Quartiles are fitnesses that occur: between a number and +inf there is nothing to interpolate.
    lower, upper = np.quantile(fitness, [0.25, 0.75], method="inverted_cdf")
    return GenerationRow(
        generation=population.generation,
        best=best.fitness,
        best_ever=population.best().fitness,
        elite_average=average,
        lower_quartile=float(lower),
        median=float(np.median(fitness)),
        upper_quartile=float(upper),
        worst=float(fitness[-1]),
        elite_offspring_fraction=born_now / len(elite) if before is not None else 0.0,
        best_uid=best.uid,
        best_optimizer=optimizer_of(best),
        best_learning_rate=best.draw.learning_rate if best.draw else 0.0,
        theorem_1_holds=before is None
        or average <= elite_average(np.array([i.fitness for i in before]), recipe.num_elite),
        diversity=diversity.get("", math.nan),
        diversity_by_optimizer={
            o: diversity[o] for o in OPTIMIZERS if not math.isnan(diversity.get(o, math.nan))
        },
        individuals_by_optimizer={o: optimizers.count(o) for o in OPTIMIZERS},
        seconds=seconds,
        traffic=dict(traffic),
    )
