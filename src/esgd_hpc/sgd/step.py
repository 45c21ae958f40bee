"""The SGD step of a generation (Algorithm 1, loop over individuals): K_s epochs with back-off.

Each group trains its own individuals one after another; there is no contact between groups until
the records meet at the end.
"""

import logging
import math
import time
from collections.abc import Mapping

import msgspec

from esgd_hpc import pulse, rng
from esgd_hpc.config import Drawn, Recipe
from esgd_hpc.errors import RunError
from esgd_hpc.learner import IndividualFailed, Learner, told
from esgd_hpc.parallel.agreement import first_told
from esgd_hpc.parallel.exchange import gather_records
from esgd_hpc.parallel.interruption import Interruption
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import NOT_FINITE, Individual, Population, Weights
from esgd_hpc.sgd.champion import Lost, keep_champion, make_champion
from esgd_hpc.sgd.optimizers import draw_optimizer, milestone_scale
from esgd_hpc.underway import Underway

log = logging.getLogger(__name__)


def sgd_step(
    population: Population,
    underway: Underway,
    recipe: Recipe,
    hyperparameters: Mapping[str, Drawn],
    topology: Topology,
    learner: Learner,
    interruption: Interruption,
) -> bool:
    """Train every individual of the population for one generation, in place.

    Who is trained already is left alone. Returns whether all are; if not, the run is to stop.
    Collective over the world. Raises RunError where every individual failed.
    """
    if underway.is_trained:
        return True
    generation = underway.generation
    done = {record.uid for record in underway.trained}
    lost = _lost_so_far(population, underway, topology)
    own = population.owned_by(topology.group_number)
    owner = population.owner
    trained = [r for r in underway.trained if owner[r.uid] == topology.group_number]
    longest = max([interruption.training, *(record.seconds for record in underway.trained)])
    for individual in own:
        if individual.uid in done:
            continue
        if interruption.should_stop(longest):
            break
        found = train_individual(
            individual,
            population.weights.get(individual.uid),
            generation,
            recipe,
            hyperparameters,
            topology,
            learner,
            lost,
            interruption,
        )
        if found is None:
            break
        record, weights = found
        trained.append(record)
        longest = max(longest, record.seconds)
        if weights is not None:
            population.weights[individual.uid] = weights
    interruption.meet("the SGD step")
    underway.trained = gather_records(topology, trained if topology.is_leader else [])
    population.trained_by = {r.uid: owner[r.uid] for r in underway.trained if r.uid not in done}
    if not underway.is_trained:
        _keep_what_is_done(population, underway, lost, topology, learner.layout.size)
        return False
    interruption.expect(max(r.seconds for r in underway.trained), interruption.scoring)
    population.individuals = list(underway.trained)
    refuse_if_all_failed(population.individuals, f"the SGD step of generation {generation}")
    population.dismiss_champion()
    if recipe.sgd.backoff_probability < 1.0:
        keep_champion(population, lost, topology, learner.layout.size)
    underway.champion_is_lost = False
    return True


def _lost_so_far(population: Population, underway: Underway, topology: Topology) -> Lost:
    """Return what this group left for worse before the step was interrupted, if it was."""
    if not underway.champion_is_lost:
        return Lost(population.best().fitness)
    record, weights = population.champion, population.champion_weights
    population.champion = population.champion_weights = None
    lost = Lost(population.best().fitness)
    if topology.group_number == 0:  # whichever group it was that lost it
        lost.record, lost.weights = record, weights
    return lost


def _keep_what_is_done(
    population: Population, underway: Underway, lost: Lost, topology: Topology, size: int
) -> None:
    """Let the records tell of the weights as they are, now that the step is interrupted."""
    champion = population.champion
    bound = champion.fitness if champion else math.inf
    underway.champion_is_lost = make_champion(population, lost, topology, size, bound)
    trained = {record.uid: record for record in underway.trained}
    population.individuals = [trained.get(i.uid, i) for i in underway.before]
    population.dismiss_champion()  # as at the end of the step: who is as fit is trained already
    underway.champion_is_lost = underway.champion_is_lost and population.champion is not None


def train_individual(
    individual: Individual,
    weights: Weights | None,
    generation: int,
    recipe: Recipe,
    hyperparameters: Mapping[str, Drawn],
    topology: Topology,
    learner: Learner,
    lost: Lost,
    interruption: Interruption,
) -> tuple[Individual, Weights | None] | None:
    """Train one individual: K_s epochs, each undone if it made the fitness worse.

    Returns its new record and, on the leader, its new weights if they changed; None if the run is
    to stop before the last epoch. An epoch that failed (exception, NaN) is always undone; an
    exception ends the step. A state that is left for a worse one is offered to `lost`. Collective
    over the group.
    """
    started = time.perf_counter()
    uid, seed = individual.uid, recipe.seed
    fine_tuning = generation > recipe.generations
    num_epochs = recipe.fine_tuning.epochs if fine_tuning else recipe.sgd.epochs
    draw = draw_optimizer(recipe, hyperparameters, generation, individual)
    fitness, metrics = individual.fitness, individual.metrics
    patience = int(draw.hyperparameters.get("patience", 0))
    lowest, idle, scale = fitness, 0, 1.0
    back_offs, failure, changed = 0, "", False

    def record(num_done: int) -> Individual:
        return msgspec.structs.replace(
            individual,
            fitness=fitness,
            metrics=metrics,
            origin="sgd" if changed else individual.origin,
            draw=draw,
            epochs=individual.epochs + num_done,
            back_offs=individual.back_offs + back_offs,
            seconds=time.perf_counter() - started,
            failure=failure,
        )

    learner.load(weights)
    optimizer = learner.optimizer(draw)
    unprepared, epoch = "", 0
    for epoch in range(1, num_epochs + 1):
        if epoch > 1:
            each = (time.perf_counter() - started) / (epoch - 1)
            if interruption.should_stop(each * (num_epochs - epoch + 1)):
                return None
        pulse.doing(f"training individual {uid}, generation {generation}, epoch {epoch}")
        rate = draw.learning_rate * scale * milestone_scale(recipe, generation, epoch)
        try:
            learner.snapshot(optimizer if epoch < num_epochs else None)
            if epoch == 1:
                learner.configure(draw.hyperparameters)
        except Exception as error:  # on this rank, maybe no other: tell them with the gradient
            unprepared = told(error)
        try:
            score = learner.train_epoch(
                optimizer,
                msgspec.structs.replace(draw, learning_rate=rate),
                generation,
                epoch,
                uid,
                unprepared,
            )
        except IndividualFailed as error:
            failure = first_told(topology.group, str(error))
            learner.restore()
            back_offs += 1
            break
        finite = math.isfinite(score.fitness)
        idle = 0 if score.fitness < lowest else idle + 1
        lowest = min(lowest, score.fitness)
        if idle == patience > 0:
            idle, scale = 0, scale * recipe.sgd.patience_factor
            if recipe.method == "single":  # what it goes on with in the next generation
                scale, rate = 1.0, draw.learning_rate * recipe.sgd.patience_factor
                draw = msgspec.structs.replace(draw, learning_rate=rate)
        if not finite:
            failure = NOT_FINITE
        stream = rng.stream(seed, generation, epoch, uid, rng.Purpose.BACK_OFF)
        backs_off = stream.random() < recipe.sgd.backoff_probability
        if not finite or (score.fitness > fitness and backs_off):
            learner.restore(optimizer)
            back_offs += 1
            if recipe.method == "single":
                halved = draw.learning_rate * recipe.single.learning_rate_factor
                draw = msgspec.structs.replace(draw, learning_rate=halved)
        else:
            if score.fitness > fitness:
                left = record(epoch - 1) if changed else individual
                lost.offer(left, learner.kept_weights if topology.is_leader else None)
            fitness, metrics, changed = score.fitness, score.metrics, True
    level = logging.WARNING if failure else logging.INFO
    log.log(
        level if topology.is_leader else logging.DEBUG,
        "individual %d, generation %d: %s, learning rate %.3g: fitness %.6g -> %.6g%s",
        *(uid, generation, draw.optimizer, draw.learning_rate, individual.fitness, fitness),
        f"; failed: {failure}" if failure else "",
    )
    return record(epoch), learner.weights() if changed and topology.is_leader else None


def refuse_if_all_failed(individuals: list[Individual], where: str) -> None:
    """Raise RunError if every individual raised something, or none has a finite fitness.

    Then it is the task that is at fault, not an individual.
    """
    raised = all(i.failure not in ("", NOT_FINITE) for i in individuals)
    if raised or all(math.isinf(i.fitness) for i in individuals):
        raise RunError(
            f"every individual failed in {where}; the first, {individuals[0].uid}, with:"
            f" {individuals[0].failure or NOT_FINITE}; --log-level debug shows tracebacks"
        )
