"""The evolution step (Algorithm 1, loop over v): children, their fitness, m-elitist selection.

Rank 0 draws and selects; leaders lend each other parents, make children and score them with
their groups, one at a time. A child that is chosen is made again where it will live.
"""

import logging
import math
import time
from collections.abc import Callable

import msgspec
import numpy as np

from esgd_hpc import pulse, rng
from esgd_hpc.config import Recipe
from esgd_hpc.evolution import operators
from esgd_hpc.evolution.plan import (
    Child,
    Round,
    assign_makers,
    draw_children,
    place_survivors,
    plan_rounds,
)
from esgd_hpc.learner import IndividualFailed, Learner
from esgd_hpc.parallel.agreement import first_told, on_root
from esgd_hpc.parallel.exchange import exchange, gather_records
from esgd_hpc.parallel.interruption import Interruption
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import NOT_FINITE, Individual, Population, Transfer, Weights
from esgd_hpc.underway import Underway

log = logging.getLogger(__name__)


class Anchor(msgspec.Struct, frozen=True):
    """A model that joins the parents of every evolution step, never trained (section 4.3)."""

    record: Individual
    weights: Weights | None
    """On leaders, None elsewhere."""


class Selected(msgspec.Struct, frozen=True):
    """What rank 0 decides after the children are scored."""

    individuals: list[Individual]
    survivors: list[int]
    chosen: list[Child]
    owner: dict[int, int]
    rounds: list[Round]
    moves: list[Transfer]


def evolution_step(
    population: Population,
    underway: Underway,
    recipe: Recipe,
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
    world, groups = topology.world, topology.num_groups
    generation, step = underway.generation, underway.steps + 1
    done = {record.uid for record in underway.scored}
    # The anchor has no owner: its weights are at hand on every leader.
    parents = population.individuals + ([anchor.record] if anchor else [])

    def plan_children() -> tuple[list[Child], list[Round]]:
        children = draw_children(recipe, parents, population.next_uid, generation, step)
        left = [child for child in children if child.uid not in done]
        makers = assign_makers(left, population.owner, groups)
        return children, plan_rounds(left, makers, population.owner, groups)

    children, rounds = on_root(world, "planning the children", plan_children)
    maker = _Maker(population, topology, learner, recipe, anchor)
    scored: list[Individual] = []
    maker.carry_out(
        rounds,
        lambda child, weights: scored.append(maker.score(child, weights, generation)),
        lambda: interruption.should_stop(max((record.seconds for record in scored), default=0.0)),
    )
    interruption.meet("scoring children")
    found = gather_records(topology, scored if topology.is_leader else [])
    offspring = sorted((*underway.scored, *found), key=lambda record: record.uid)
    if len(offspring) < len(children):
        underway.scored = offspring
        return False
    # One untrained copy of the anchor among the individuals is enough.
    if anchor and all(i.origin != "anchor" for i in population.individuals):
        uid, parent = population.next_uid + recipe.population.offspring, anchor.record.uid
        children.append(Child(uid=uid, parents=(parent,), is_copy=True))
        offspring.append(
            msgspec.structs.replace(anchor.record, uid=uid, parents=(parent,), born=generation)
        )

    def select() -> Selected:
        candidates = population.individuals + offspring
        elite, rest = operators.select_survivors(
            np.array([c.fitness for c in candidates]),
            [c.uid for c in candidates],
            recipe.num_elite,
            recipe.num_parents,
            rng.stream(recipe.seed, generation, step, 0, rng.Purpose.SURVIVORS),
        )
        individuals = sorted((candidates[place] for place in elite + rest), key=lambda i: i.uid)
        uids = {i.uid for i in individuals}
        survivors = [i.uid for i in population.individuals if i.uid in uids]
        chosen = [child for child in children if child.uid in uids]
        owner, moves = place_survivors(survivors, chosen, population.owner, groups)
        again = plan_rounds(chosen, owner, population.owner, groups)
        return Selected(individuals, survivors, chosen, owner, again, moves)

    selected: Selected = on_root(world, "selecting the survivors", select)
    born: dict[int, Weights] = {}
    maker.carry_out(selected.rounds, lambda child, weights: maker.keep(child, weights, born))
    if topology.is_leader:
        arrived: dict[int, Weights] = {}
        exchange(
            topology.peers,
            selected.moves,
            population.weights.__getitem__,
            arrived,
            learner.layout.size,
        )
        everything = {**population.weights, **arrived, **born}
        population.weights = {
            uid: everything[uid]
            for uid, group in selected.owner.items()
            if group == topology.group_number
        }
    population.individuals = selected.individuals
    population.owner = selected.owner
    population.next_uid += recipe.population.offspring + 1  # one for the copy of an anchor
    population.dismiss_champion()
    underway.steps += 1
    underway.scored = []
    underway.offspring += offspring
    underway.selected += [i.uid for i in population.individuals]
    return True


class _Maker:
    """Makes the children that a plan gives to this group, from parents of its own and borrowed."""

    def __init__(
        self,
        population: Population,
        topology: Topology,
        learner: Learner,
        recipe: Recipe,
        anchor: Anchor | None,
    ) -> None:
        self._population = population
        self._topology = topology
        self._learner = learner
        self._recalibrate = recipe.evolution.batchnorm == "recalibrate"
        self._at_hand: dict[int, Weights] = {}
        if anchor and anchor.weights is not None:
            self._at_hand[anchor.record.uid] = anchor.weights
        self._borrowed: dict[int, Weights] = {}

    def carry_out(
        self,
        rounds: list[Round],
        use: Callable[[Child, Weights | None], None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Bring the parents of each round and call `use` with each of the group's children.

        Makes no more of them once the group is to stop, but goes on lending parents as the plan
        says. Collective over the world; a child's weights are None on ranks that are no leader.
        """
        stopped = False
        size = self._learner.layout.size
        buffer = np.empty(size, dtype=np.float32) if self._topology.is_leader else None
        for making in rounds:
            if self._topology.is_leader:
                transfers = [
                    Transfer(uid, self._population.owner[uid], group)
                    for group in sorted(making)
                    for uid in making[group].borrow
                ]
                exchange(
                    self._topology.peers,
                    transfers,
                    self._population.weights.__getitem__,
                    self._borrowed,
                    size,
                )
            mine = making.get(self._topology.group_number)
            if mine is None:
                continue
            for child in mine.children:
                stopped = stopped or should_stop()
                if stopped:
                    break
                if buffer is not None:
                    self._make(child, buffer)
                use(child, buffer)
            if self._topology.is_leader:
                for uid in mine.give_back:
                    del self._borrowed[uid]

    def _make(self, child: Child, out: Weights) -> None:
        layout = self._learner.layout
        parents = [self._weights_of(uid) for uid in child.parents]
        operators.recombine(parents, child.parents, layout, out)
        operators.mutate(out, int(child.noise_seed), child.sigma, layout)

    def _weights_of(self, uid: int) -> Weights:
        for place in (self._population.weights, self._borrowed, self._at_hand):
            if uid in place:
                return place[uid]
        raise AssertionError(f"parent {uid} is not at hand on group {self._topology.group_number}")

    def score(self, child: Child, weights: Weights | None, generation: int) -> Individual:
        """Return the record of a child with its fitness. Collective over the group."""
        started = time.perf_counter()
        pulse.doing(f"scoring child {child.uid}, generation {generation}")
        fitness, metrics, failure = float("inf"), {}, ""
        self._learner.load(weights)
        try:
            score = self._learner.score(recalibrate=self._recalibrate)
            fitness, metrics = score.fitness, score.metrics
            failure = "" if math.isfinite(fitness) else NOT_FINITE
        except IndividualFailed as error:
            failure = first_told(self._topology.group, str(error))
        if failure and self._topology.is_leader:
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

    def keep(self, child: Child, weights: Weights | None, kept: dict[int, Weights]) -> None:
        """Put the weights of a child, as they were scored, into `kept` on the leader."""
        if weights is None:
            return
        if self._recalibrate and not child.is_copy:
            kept[child.uid] = self._learner.recalibrated(weights)
        else:
            kept[child.uid] = weights.copy()
