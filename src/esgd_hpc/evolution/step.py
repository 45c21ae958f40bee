"""The evolution step (Algorithm 1, loop over v): children, their fitness, m-elitist selection.

Rank 0 draws and selects; leaders lend each other parents, make children and score them with
their groups, one at a time. A child that is chosen is made again where it will live.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
import numpy as np

from esgd_hpc import pulse, rng
from esgd_hpc.config import Drawn, Recipe
from esgd_hpc.evolution import operators
from esgd_hpc.evolution.making import Maker
from esgd_hpc.evolution.placement import (
    Costs,
    choose_makers,
    place_children,
    place_population,
)
from esgd_hpc.evolution.plan import Child, Part, Plan, draw_children, plan_stages, traffic
from esgd_hpc.learner import IndividualFailed, Learner
from esgd_hpc.parallel.agreement import first_told, from_root
from esgd_hpc.parallel.exchange import gather_on_root
from esgd_hpc.parallel.interruption import Interruption
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import NOT_FINITE, Individual, Population, Transfer, Weights
from esgd_hpc.sgd.optimizers import draw_optimizer
from esgd_hpc.underway import Underway

log = logging.getLogger(__name__)

T = TypeVar("T")


class Anchor(msgspec.Struct, frozen=True):
    """A model that joins the parents of every evolution step, never trained (section 4.3)."""

    record: Individual
    weights: Weights | None
    """On leaders, None elsewhere."""


class Selected(msgspec.Struct, frozen=True, kw_only=True):
    """What rank 0 decides after the children are scored, for one group."""

    individuals: list[Individual]
    owner: dict[int, int]
    """Of all of them."""
    moves: list[Transfer]
    """Survivors that come to live elsewhere, before the chosen children are made again."""
    part: Part
    """How the group makes its chosen children."""
    births: list[Transfer]
    """Chosen children that were made elsewhere than where they will live."""


def evolution_step(
    population: Population,
    underway: Underway,
    recipe: Recipe,
    hyperparameters: Mapping[str, Drawn],
    topology: Topology,
    learner: Learner,
    anchor: Anchor | None,
    interruption: Interruption,
) -> bool:
    """Replace the population by the m-elite of parents and offspring and a random rest.

    In place and collective over the world; it is the next step of the generation that is underway.
    Children that are scored already are not made again. Returns whether the step is done; if not,
    the run is to stop. Raises RunError where no individual can be a parent.
    """
    planner = _Planner(population, underway, recipe, hyperparameters, topology, learner, anchor)
    with underway.timed("planning"):
        part = from_root(topology.world, "planning the children", planner.plan_children)
    at_hand = {}
    if anchor and anchor.weights is not None:
        at_hand[anchor.record.uid] = anchor.weights
    maker = Maker(population.weights, at_hand, topology, learner.layout, underway)
    if not _score_children(part, maker, underway, recipe, topology, learner, interruption):
        return False
    with underway.timed("planning"):
        selected = from_root(topology.world, "selecting the survivors", planner.select)

    def finish(child: Child, weights: Weights) -> Weights:
        """Return a child's weights as they were scored."""
        if recipe.evolution.batchnorm == "recalibrate" and not child.is_copy:
            return learner.recalibrated(weights)
        return weights

    maker.move(selected.moves, population.weights)
    population.owner.update({move.uid: move.target for move in selected.moves})
    born = maker.make_again(selected.part, finish, selected.owner.keys())
    maker.move(selected.births, born)
    maker.close()
    population.weights = {
        uid: weights
        for uid, weights in {**population.weights, **born}.items()
        if selected.owner.get(uid) == topology.group_number
    }
    population.individuals = selected.individuals
    population.owner = selected.owner
    population.next_uid += recipe.population.offspring + 1  # one for the copy of an anchor
    population.dismiss_champion()
    underway.steps += 1
    underway.offspring += underway.scored
    underway.scored = []
    underway.selected += [i.uid for i in population.individuals]
    return True


class _Planner:
    """What rank 0 decides in one evolution step: who is made where, and who survives."""

    def __init__(
        self,
        population: Population,
        underway: Underway,
        recipe: Recipe,
        hyperparameters: Mapping[str, Drawn],
        topology: Topology,
        learner: Learner,
        anchor: Anchor | None,
    ) -> None:
        self._population, self._underway, self._recipe = population, underway, recipe
        self._hyperparameters, self._anchor = hyperparameters, anchor
        self._num_groups, self._ranks_per_group = topology.num_groups, topology.ranks_per_group
        self._size = learner.layout.size
        self._step = underway.steps + 1
        self._children: list[Child] = []

    def plan_children(self) -> list[Part]:
        """Return what each rank does to make and score the children that are not scored yet."""
        population, underway = self._population, self._underway
        # The anchor has no owner: its weights are at hand on every leader.
        parents = population.individuals + ([self._anchor.record] if self._anchor else [])
        self._children = draw_children(
            self._recipe, parents, population.next_uid, underway.generation, self._step
        )
        done = {record.uid for record in underway.scored}
        left = [child for child in self._children if child.uid not in done]
        paces = Costs(underway.trained, population.trained_by, self._num_groups).paces
        makers = place_children({c.uid: c.parents for c in left}, population.owner, paces)
        plan = plan_stages(left, makers, population.owner, self._num_groups)
        self._count("scoring children", plan, [])
        return self._for_ranks(plan.parts())

    def select(self) -> list[Selected]:
        """Return for each rank who survives, who lives where, and how the chosen come there.

        Adds the copy of an anchor to the children that are scored: one among the individuals is
        enough.
        """
        population, underway, recipe = self._population, self._underway, self._recipe
        if self._anchor and all(i.origin != "anchor" for i in population.individuals):
            record = self._anchor.record
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
        plan = plan_stages(chosen, makers, lender, self._num_groups)
        births = _moves(makers, owner)
        self._count("the population", plan, moves + births)
        return self._for_ranks(
            [
                Selected(
                    individuals=individuals, owner=owner, moves=moves, part=part, births=births
                )
                for part in plan.parts()
            ]
        )

    def _for_ranks(self, by_group: Sequence[T]) -> list[T]:
        return [each for each in by_group for _ in range(self._ranks_per_group)]

    def _count(self, what: str, plan: Plan, moves: list[Transfer]) -> None:
        counted = traffic(plan, moves)
        moved, least = counted.moved_bytes(self._size), counted.least_bytes(self._size)
        for name, value in (("moved", moved), ("least", least)):
            self._underway.traffic[name] = self._underway.traffic.get(name, 0) + value
        log.debug(
            "%s: %d vectors come to groups, %d of them broadcast; %d bytes, %d at least; a group"
            " borrows up to %d",
            *(what, sum(counted.received), len(plan.broadcasts) * (self._num_groups - 1)),
            *(moved, least, counted.most_borrowed),
        )


def _moves(before: Mapping[int, int], after: Mapping[int, int]) -> list[Transfer]:
    """Return the transfers of those that are on another group afterwards."""
    return [
        Transfer(uid, group, after[uid])
        for uid, group in sorted(before.items())
        if after.get(uid, group) != group
    ]


def _score_children(
    part: Part,
    maker: Maker,
    underway: Underway,
    recipe: Recipe,
    topology: Topology,
    learner: Learner,
    interruption: Interruption,
) -> bool:
    """Make and score the group's children; the records of all are `scored` on rank 0 then.

    Returns whether all children are scored; if not, the run is to stop. Collective over the world.
    """
    scored: list[Individual] = []

    def score(child: Child, weights: Weights | None) -> None:
        with underway.timed("scoring"):
            scored.append(_score(child, weights, underway.generation, recipe, topology, learner))

    maker.carry_out(
        part,
        score,
        lambda: interruption.should_stop(
            max([interruption.scoring, *(record.seconds for record in scored)])
        ),
    )
    interruption.meet("scoring children")
    maker.close()
    found = gather_on_root(topology, scored)
    underway.scored = sorted((*underway.scored, *found), key=lambda record: record.uid)
    longest = max((record.seconds for record in found), default=interruption.scoring)
    with pulse.waiting("hearing how many children are scored"):
        number, longest = topology.world.bcast((len(underway.scored), longest))
    interruption.expect(interruption.training, longest)
    return bool(number == recipe.population.offspring)


def _score(
    child: Child,
    weights: Weights | None,
    generation: int,
    recipe: Recipe,
    topology: Topology,
    learner: Learner,
) -> Individual:
    """Return the record of a child with its fitness. Collective over the group."""
    started = time.perf_counter()
    pulse.doing(f"scoring child {child.uid}, generation {generation}")
    fitness, metrics, failure = float("inf"), {}, ""
    learner.load(weights)
    try:
        score = learner.score(recalibrate=recipe.evolution.batchnorm == "recalibrate")
        fitness, metrics = score.fitness, score.metrics
        failure = "" if math.isfinite(fitness) else NOT_FINITE
    except IndividualFailed as error:
        failure = first_told(topology.group, str(error))
    if failure and topology.is_leader:
        log.warning("child %d, generation %d, failed: %s", child.uid, generation, failure)
    return Individual(
        uid=child.uid,
        fitness=fitness,
        metrics=metrics,
        origin="offspring",
        born=generation,
        parents=child.parents,
        noise_seed=child.noise_seed,
        sigma=child.sigma,
        seconds=time.perf_counter() - started,
        failure=failure,
    )
