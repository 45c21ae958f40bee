"""The evolution step (Algorithm 1, loop over v): children, their fitness, m-elitist selection.

Rank 0 draws and selects; leaders lend each other parents, make children and score them with
their groups, one at a time. A child that is chosen is made again where it will live.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence, Set

import msgspec
import numpy as np

from esgd_hpc import pulse, rng
from esgd_hpc.config import Drawn, Recipe
from esgd_hpc.evolution import operators
from esgd_hpc.evolution.placement import (
    Costs,
    choose_makers,
    place_children,
    place_population,
)
from esgd_hpc.evolution.plan import (
    Child,
    Round,
    draw_children,
    last_uses,
    plan_rounds,
    traffic,
)
from esgd_hpc.learner import IndividualFailed, Learner
from esgd_hpc.parallel.agreement import first_told, on_root
from esgd_hpc.parallel.exchange import exchange, gather_records
from esgd_hpc.parallel.interruption import Interruption
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import NOT_FINITE, Individual, Population, Transfer, Weights
from esgd_hpc.sgd.optimizers import draw_optimizer
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
    owner: dict[int, int]
    """Of all of them."""
    moves: list[Transfer]
    """Survivors that come to live elsewhere, before the chosen children are made again."""
    rounds: list[Round]
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
    world, groups = topology.world, topology.num_groups
    generation, step = underway.generation, underway.steps + 1
    done = {record.uid for record in underway.scored}
    # The anchor has no owner: its weights are at hand on every leader.
    parents = population.individuals + ([anchor.record] if anchor else [])

    def plan_children() -> tuple[list[Child], list[Round]]:
        children = draw_children(recipe, parents, population.next_uid, generation, step)
        left = [child for child in children if child.uid not in done]
        paces = Costs(underway.trained, population.trained_by, groups).paces
        makers = place_children({c.uid: c.parents for c in left}, population.owner, paces)
        rounds = plan_rounds(left, makers, population.owner, groups)
        _tell_traffic("scoring children", rounds, [], topology, learner)
        return children, rounds

    children, rounds = on_root(world, "planning the children", plan_children)
    maker = _Maker(population, topology, learner, recipe, anchor)
    scored: list[Individual] = []
    maker.carry_out(
        rounds,
        lambda child, weights: scored.append(maker.score(child, weights, generation)),
        lambda: interruption.should_stop(
            max([interruption.scoring, *(record.seconds for record in scored)])
        ),
    )
    interruption.meet("scoring children")
    found = gather_records(topology, scored if topology.is_leader else [])
    offspring = sorted((*underway.scored, *found), key=lambda record: record.uid)
    if found:
        interruption.expect(interruption.training, max(record.seconds for record in found))
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
        chosen = [child for child in children if child.uid in uids]
        costs = Costs(underway.trained, population.trained_by, groups)
        seconds = dict.fromkeys(uids, 1.0)
        if generation < recipe.last_generation:
            for i in individuals:
                draw = draw_optimizer(recipe, hyperparameters, generation + 1, i)
                seconds[i.uid] = costs.seconds(draw)
        parents_of = {child.uid: child.parents for child in chosen}
        needs = {i.uid: parents_of.get(i.uid, (i.uid,)) for i in individuals}
        owner = place_population(needs, seconds, population.owner, costs.paces)
        moves = _moves(population.owner, owner)
        lender = {uid: owner.get(uid, group) for uid, group in population.owner.items()}
        makers = choose_makers(parents_of, owner, lender, groups)
        again, births = plan_rounds(chosen, makers, lender, groups), _moves(makers, owner)
        _tell_traffic("the population", again, moves + births, topology, learner)
        return Selected(individuals, owner, moves, again, births)

    selected: Selected = on_root(world, "selecting the survivors", select)
    maker.move(selected.moves, population.weights)
    population.owner.update({move.uid: move.targets[0] for move in selected.moves})
    born: dict[int, Weights] = {}
    maker.carry_out(
        selected.rounds,
        lambda child, weights: maker.keep(child, weights, born),
        survivors=selected.owner.keys(),
    )
    maker.move(selected.births, born)
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
    underway.scored = []
    underway.offspring += offspring
    underway.selected += [i.uid for i in population.individuals]
    return True


def _moves(before: Mapping[int, int], after: Mapping[int, int]) -> list[Transfer]:
    """Return the transfers of those that are on another group afterwards."""
    return [
        Transfer(uid, group, (after[uid],))
        for uid, group in sorted(before.items())
        if after.get(uid, group) != group
    ]


def _tell_traffic(
    what: str, rounds: list[Round], moves: list[Transfer], topology: Topology, learner: Learner
) -> None:
    counted = traffic(rounds, moves, topology.num_groups)
    log.debug(
        "%s: %d vectors travel, %d bytes in %d rounds; %d at least; a group borrows up to %d",
        *(what, sum(counted.received), counted.moved_bytes(learner.layout.size), len(rounds)),
        *(counted.least, counted.most_borrowed),
    )


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
        survivors: Set[int] | None = None,
    ) -> None:
        """Bring the parents of each round and call `use` with each of the group's children.

        Makes no more of them once the group is to stop, but goes on lending parents as the plan
        says. Forgets individuals that no child needs any more, where `survivors` says who is to
        stay. Collective over the world; a child's weights are None on ranks that are no leader.
        """
        stopped, weights = False, self._population.weights
        size = self._learner.layout.size
        buffer = np.empty(size, dtype=np.float32) if self._topology.is_leader else None
        last_use = last_uses(rounds)
        for number, each in enumerate(rounds):
            if survivors is not None:
                for uid in weights.keys() - survivors:
                    if last_use.get(uid, -1) < number:
                        del weights[uid]
            self._exchange(each.transfers, weights, self._borrowed)
            mine = each.makings.get(self._topology.group_number)
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

    def move(self, transfers: list[Transfer], weights: dict[int, Weights]) -> None:
        """Bring weights to other groups for good. Collective over the world."""
        self._exchange(transfers, weights, weights)
        for transfer in transfers:
            if transfer.source == self._topology.group_number:
                weights.pop(transfer.uid, None)

    def _exchange(
        self,
        transfers: Sequence[Transfer],
        have: Mapping[int, Weights],
        arrived: dict[int, Weights],
    ) -> None:
        if self._topology.is_leader:
            size = self._learner.layout.size
            exchange(self._topology.peers, transfers, have.__getitem__, arrived, size)

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
