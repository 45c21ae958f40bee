"""The evolution step (Algorithm 1, loop over v): children, their fitness, m-elitist selection.

Rank 0 draws and selects; leaders lend each other parents, make children and score them with
their groups, one at a time. A child that is chosen is made again where it will live.
"""

import logging
import math
import time
from collections.abc import Mapping

import msgspec

from esgd_hpc import pulse
from esgd_hpc.config import Drawn, Recipe
from esgd_hpc.evolution.making import Maker
from esgd_hpc.evolution.plan import Child, Part
from esgd_hpc.evolution.planner import Planner
from esgd_hpc.learner import IndividualFailed, Learner
from esgd_hpc.parallel.agreement import first_told, from_root, on_root
from esgd_hpc.parallel.exchange import gather_on_root
from esgd_hpc.parallel.interruption import Interruption
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import NOT_FINITE, Individual, Population, Weights
from esgd_hpc.underway import Underway

log = logging.getLogger(__name__)


class Anchor(msgspec.Struct, frozen=True):
    """A model that joins the parents of every evolution step, never trained (section 4.3)."""

    record: Individual
    weights: Weights | None
    """On leaders, None elsewhere."""


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
    planner = Planner(
        population,
        underway,
        recipe,
        hyperparameters,
        anchor.record if anchor else None,
        topology.num_groups,
        topology.ranks_per_group,
        learner.layout.size,
    )
    with underway.timed("planning"):
        part = from_root(topology.world, "planning the children", planner.plan_children)
    at_hand = {}
    if anchor and anchor.weights is not None:
        at_hand[anchor.record.uid] = anchor.weights
    maker = Maker(population.weights, at_hand, topology, learner.layout, underway)
    if not _score_children(part, maker, underway, recipe, topology, learner, interruption):
        return False
    with underway.timed("planning"):
        selected = on_root(topology.world, "selecting the survivors", planner.select)
        part = from_root(topology.world, "planning the chosen children", planner.parts)

    def finish(child: Child, weights: Weights) -> Weights:
        """Return a child's weights as they were scored."""
        if recipe.evolution.batchnorm == "recalibrate" and not child.is_copy:
            return learner.recalibrated(weights)
        return weights

    maker.move(selected.moves, population.weights)
    population.owner.update({move.uid: move.target for move in selected.moves})
    born = maker.make_again(part, finish, selected.owner.keys())
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
