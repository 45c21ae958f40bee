"""What rank 0 decides in an evolution step: which children, who survives, and who is where."""

import logging
from collections.abc import Mapping

import msgspec
import numpy as np

from esgd_hpc import rng
from esgd_hpc.config import Drawn, Recipe
from esgd_hpc.evolution import operators
from esgd_hpc.evolution.placement import (
    Costs,
    choose_makers,
    place_children,
    place_population,
)
from esgd_hpc.evolution.plan import Child, Part, Plan, draw_children, plan_stages, traffic
from esgd_hpc.population import Individual, Population, Transfer
from esgd_hpc.sgd.optimizers import draw_optimizer
from esgd_hpc.underway import Underway

log = logging.getLogger(__name__)


class Selected(msgspec.Struct, frozen=True, kw_only=True):
    """What rank 0 decides after the children are scored; the same on every rank."""

    individuals: list[Individual]
    owner: dict[int, int]
    """Of all of them."""
    moves: list[Transfer]
    """Survivors that come to live elsewhere, before the chosen children are made again."""
    births: list[Transfer]
    """Chosen children that were made elsewhere than where they will live."""


class Planner:
    """What rank 0 decides in one evolution step: who is made where, and who survives."""

    def __init__(
        self,
        population: Population,
        underway: Underway,
        recipe: Recipe,
        hyperparameters: Mapping[str, Drawn],
        anchor: Individual | None,
        num_groups: int,
        ranks_per_group: int,
        size: int,
    ) -> None:
        """Take the record of the recipe's anchor, and the length P of flat vectors, besides."""
        self._population, self._underway, self._recipe = population, underway, recipe
        self._hyperparameters, self._anchor = hyperparameters, anchor
        self._num_groups, self._ranks_per_group = num_groups, ranks_per_group
        self._size = size
        self._step = underway.steps + 1
        self._children: list[Child] = []
        self._plan = Plan(broadcasts=(), stages=())

    def plan_children(self) -> list[Part]:
        """Return what each rank does to make and score the children that are not scored yet."""
        self._place_children()
        return self.parts()

    def parts(self) -> list[Part]:
        """Return what each rank does of the newest plan."""
        return [part for part in self._plan.parts() for _ in range(self._ranks_per_group)]

    def _place_children(self) -> None:
        population, underway = self._population, self._underway
        # The anchor has no owner: its weights are at hand on every leader.
        parents = population.individuals + ([self._anchor] if self._anchor else [])
        self._children = draw_children(
            self._recipe, parents, population.next_uid, underway.generation, self._step
        )
        done = {record.uid for record in underway.scored}
        left = [child for child in self._children if child.uid not in done]
        paces = Costs(underway.trained, population.trained_by, self._num_groups).paces
        makers = place_children({c.uid: c.parents for c in left}, population.owner, paces)
        self._plan = plan_stages(left, makers, population.owner, self._num_groups)
        self._count("scoring children", [])

    def select(self) -> Selected:
        """Return who survives and who lives where, and plan how the chosen children come there.

        Adds the copy of an anchor to the children that are scored: one among the individuals is
        enough.
        """
        population, underway, recipe = self._population, self._underway, self._recipe
        if self._anchor and all(i.origin != "anchor" for i in population.individuals):
            record = self._anchor
            uid, parents = population.next_uid + recipe.population.offspring, (record.uid,)
            self._children.append(Child(uid=uid, parents=parents, is_copy=True))
            copy = msgspec.structs.replace(
                record, uid=uid, parents=parents, born=underway.generation
            )
            underway.scored.append(copy)
        candidates = population.individuals + underway.scored
        elite, rest = operators.select_survivors(
            np.array([c.fitness for c in candidates]),
            [c.uid for c in candidates],
            recipe.num_elite,
            recipe.num_parents,
            rng.stream(recipe.seed, underway.generation, self._step, 0, rng.Purpose.SURVIVORS),
        )
        individuals = sorted((candidates[place] for place in elite + rest), key=lambda i: i.uid)
        uids = {i.uid for i in individuals}
        chosen = [child for child in self._children if child.uid in uids]
        costs = Costs(underway.trained, population.trained_by, self._num_groups)
        seconds = dict.fromkeys(uids, 1.0)
        if underway.generation < recipe.last_generation:
            for i in individuals:
                draw = draw_optimizer(recipe, self._hyperparameters, underway.generation + 1, i)
                seconds[i.uid] = costs.seconds(draw)
        parents_of = {child.uid: child.parents for child in chosen}
        needs = {i.uid: parents_of.get(i.uid, (i.uid,)) for i in individuals}
        owner = place_population(needs, seconds, population.owner, costs.paces)
        moves = _moves(population.owner, owner)
        lender = {uid: owner.get(uid, group) for uid, group in population.owner.items()}
        makers = choose_makers(parents_of, owner, lender, self._num_groups)
        self._plan = plan_stages(chosen, makers, lender, self._num_groups)
        births = _moves(makers, owner)
        self._count("the population", moves + births)
        return Selected(individuals=individuals, owner=owner, moves=moves, births=births)

    def _count(self, what: str, moves: list[Transfer]) -> None:
        counted = traffic(self._plan, moves)
        moved, least = counted.moved_bytes(self._size), counted.least_bytes(self._size)
        for name, value in (("moved", moved), ("least", least)):
            self._underway.traffic[name] = self._underway.traffic.get(name, 0) + value
        log.debug(
            "%s: %d vectors come to groups, %d of them broadcast; %d bytes, %d at least; a group"
            " borrows up to %d",
            *(what, sum(counted.received), len(self._plan.broadcasts) * (self._num_groups - 1)),
            *(moved, least, counted.most_borrowed),
        )


def _moves(before: Mapping[int, int], after: Mapping[int, int]) -> list[Transfer]:
    """Return the transfers of those that are on another group afterwards."""
    return [
        Transfer(uid, group, after[uid])
        for uid, group in sorted(before.items())
        if after.get(uid, group) != group
    ]
