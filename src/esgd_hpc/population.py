"""Individuals, what is known of each, and which group owns its weights.

The records of all individuals are the same on every rank. The weights of an individual lie only
on the leader of the group that owns it.
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]
"""One individual's flat vector, shape [P], see `layout`."""

Origin = Literal["initial", "sgd", "offspring", "anchor"]
ORIGINS: tuple[Origin, ...] = ("initial", "sgd", "offspring", "anchor")

HyperparameterValue = float | int | str | bool


class Draw(msgspec.Struct, frozen=True, kw_only=True):
    """The optimizer and hyper-parameters that one individual trains with in one SGD step."""

    optimizer: Literal["sgd", "adam"]
    learning_rate: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    batch_size: int = 128
    """Samples of one step over the whole group."""
    hyperparameters: dict[str, HyperparameterValue] = {}
    """What the task declares besides: dropout rates and the like."""


class Individual(msgspec.Struct, frozen=True, kw_only=True):
    """One member of the population, without its weights."""

    uid: int
    fitness: float
    """Loss on the fitness data, lower is better; +inf if it could not be computed."""
    metrics: dict[str, float] = {}
    """Further means over the fitness data, such as the error rate."""
    origin: Origin = "initial"
    """What made its weights as they are now."""
    born: int = 0
    """Generation in which its uid appeared."""
    parents: tuple[int, ...] = ()
    noise_seed: str = "0"
    """Key of its mutation's stream (128 bits, decimal), with `sigma` enough to make it again."""
    sigma: float = 0.0
    """Standard deviation of its mutation, 0 if it was not mutated."""
    draw: Draw | None = None
    """Its last SGD step's optimizer; None before the first."""
    epochs: int = 0
    """SGD epochs that its own weights have been through since birth, backed-off ones included."""
    back_offs: int = 0
    """How many of them were backed off."""
    seconds: float = 0.0
    """Wall time of its last SGD step, or of making and scoring it. Not part of the result."""
    failure: str = ""
    """What went wrong when it last failed, empty if nothing did."""


NOT_FINITE = "the loss is not finite"
"""The failure of an individual that raised nothing."""


def fittest(individuals: Sequence[Individual]) -> Individual:
    """Return the fittest individual; of equals the one with the lowest uid."""
    return min(individuals, key=lambda individual: (individual.fitness, individual.uid))


def finite_fitness(value: float) -> float:
    """Return the value as a fitness: NaN and infinities of either sign count as +inf."""
    return value if math.isfinite(value) else math.inf


class Population(msgspec.Struct, kw_only=True):
    """The mu individuals after some generation, and the groups that own them."""

    generation: int
    individuals: list[Individual]
    """In uid order; the same on every rank."""
    owner: dict[int, int]
    """uid to group number; the same on every rank."""
    next_uid: int
    weights: dict[int, Weights]
    """uid to flat vector: on a leader those that its group owns, empty elsewhere.

    A vector is never changed once it is here: a checkpoint may still be writing it.
    """
    trained_by: dict[int, int] = {}
    """uid to the group that trained it in the newest SGD step, unless another job did."""
    champion: Individual | None = None
    """The fittest state ever seen, if no longer in the population; the same on every rank."""
    champion_weights: Weights | None = None
    """The champion's flat vector, on rank 0 alone."""

    def best(self) -> Individual:
        """Return the fittest ever seen: the champion, or the fittest individual."""
        return self.champion or fittest(self.individuals)

    def dismiss_champion(self) -> None:
        """Let the champion go where an individual is as fit."""
        if self.champion and fittest(self.individuals).fitness <= self.champion.fitness:
            self.champion = self.champion_weights = None

    def owned_by(self, group: int) -> list[Individual]:
        """Return the individuals of one group in uid order."""
        return [i for i in self.individuals if self.owner[i.uid] == group]


class Transfer(msgspec.Struct, frozen=True):
    """An individual's weights on their way from one leader to another."""

    uid: int
    source: int
    target: int


class Broadcast(msgspec.Struct, frozen=True):
    """An individual's weights on their way from one leader to all others."""

    uid: int
    source: int
