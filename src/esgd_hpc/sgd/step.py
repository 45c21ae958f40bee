"""The SGD step of a generation (Algorithm 1, loop over individuals): K_s epochs with back-off.

Each group trains its own individuals one after another; there is no contact between groups until
the records meet at the end.
"""

import logging
import math
import time
from collections.abc import Mapping

import msgspec

from esgd_hpc import rng
from esgd_hpc.config import Drawn, Recipe
from esgd_hpc.errors import RunError
from esgd_hpc.fitness import told
from esgd_hpc.learner import IndividualFailed, Learner
from esgd_hpc.parallel.agreement import first_told
from esgd_hpc.parallel.exchange import gather_records
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import NOT_FINITE, Individual, Population, Weights
from esgd_hpc.sgd.champion import Lost, keep_champion
from esgd_hpc.sgd.optimizers import draw_optimizer, milestone_scale

log = logging.getLogger(__name__)


def sgd_step(
    population: Population,
    generation: int,
    recipe: Recipe,
    hyperparameters: Mapping[str, Drawn],
    topology: Topology,
    learner: Learner,
) -> None:
    """Train every individual of the population for one generation, in place.

    Collective over the world. Raises RunError where every individual failed.
    """
    trained, lost = [], Lost(population.best().fitness)
    for individual in population.owned_by(topology.group_number):
        weights = population.weights.get(individual.uid)
        record, weights = train_individual(
            individual, weights, generation, recipe, hyperparameters, topology, learner, lost
        )
        if topology.is_leader:
            trained.append(record)
            if weights is not None:
                population.weights[individual.uid] = weights
    population.individuals = gather_records(topology, trained)
    refuse_if_all_failed(population.individuals, f"the SGD step of generation {generation}")
    population.dismiss_champion()
    if recipe.sgd.backoff_probability < 1.0:
        keep_champion(population, lost, topology, learner.layout.size)


def train_individual(
    individual: Individual,
    weights: Weights | None,
    generation: int,
    recipe: Recipe,
    hyperparameters: Mapping[str, Drawn],
    topology: Topology,
    learner: Learner,
    lost: Lost,
) -> tuple[Individual, Weights | None]:
    """Train one individual: K_s epochs, each undone if it made the fitness worse.

    Returns its new record and, on the leader, its new weights if they changed. An epoch that failed
    (exception, NaN) is always undone; an exception ends the step. A state that is left for a worse
    one is offered to `lost`. Collective over the group.
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
