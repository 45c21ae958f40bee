"""Where a run starts from: the newest checkpoint in its folder, or a new population."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from esgd_hpc import rng
from esgd_hpc.checkpoint.export import read_state_dict, vector_from
from esgd_hpc.checkpoint.lock import refuse_file
from esgd_hpc.checkpoint.reader import Checkpoint, open_checkpoint
from esgd_hpc.checkpoint.verify import newest_valid
from esgd_hpc.config import Recipe, differing_keys, recipe_data
from esgd_hpc.errors import InputError
from esgd_hpc.evolution.operators import mutate
from esgd_hpc.evolution.step import Anchor
from esgd_hpc.history import History
from esgd_hpc.layout import Layout
from esgd_hpc.learner import IndividualFailed, Learner
from esgd_hpc.parallel.agreement import first_told, on_root, together
from esgd_hpc.parallel.exchange import gather_records
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import NOT_FINITE, Individual, Population, Weights
from esgd_hpc.sgd.step import refuse_if_all_failed

log = logging.getLogger(__name__)

Resume = Literal["auto", "never", "require"]


class Found(msgspec.Struct, frozen=True):
    """What rank 0 found in the output folder, and says about it."""

    path: Path | None
    notes: list[str]


def find_start(recipe: Recipe, folder: Path | None, resume: Resume) -> Found:
    """Choose the checkpoint to go on from. On rank 0 only."""
    if folder is None:
        return Found(None, [])
    refuse_file(folder)
    path, notes = newest_valid(folder)
    if path is None:
        if resume == "require":
            raise InputError(
                f"--resume require: no complete generation in {folder}"
                + "".join(f"; {note}" for note in notes)
            )
        return Found(None, notes)
    if resume == "never":
        raise InputError(
            f"--resume never: {folder} already holds a run ({path.name}); name another --output"
        )
    checkpoint = open_checkpoint(path)
    different = differing_keys(checkpoint.recipe, recipe_data(recipe))
    if different:
        raise InputError(
            f"--output {folder} holds a run of another recipe ({'; '.join(different)});"
            " name another --output, or give it the same recipe"
        )
    if checkpoint.ranks_per_group != recipe.topology.ranks_per_group:
        notes.append(
            f"going on with {recipe.topology.ranks_per_group} ranks per group instead of"
            f" {checkpoint.ranks_per_group}: last bits may differ"
        )
    if checkpoint.generation >= recipe.last_generation:
        notes.append(f"{path} is verified and the last generation: nothing left to do")
    else:
        notes.append(f"{path} is verified; going on from generation {checkpoint.generation}")
    return Found(path, notes)


def restore(path: Path, topology: Topology, layout: Layout) -> tuple[Population, History]:
    """Read a checkpoint: rank 0 the records, each leader the weights that it will own.

    Rank 0 gets the whole history, the others its rows.
    """
    world = topology.world
    history = History()

    def read() -> Checkpoint:
        nonlocal history
        found = open_checkpoint(path)
        history = found.history
        return msgspec.structs.replace(found, history=history.only_rows())

    checkpoint: Checkpoint = on_root(world, f"reading {path}", read)
    if world.rank > 0:
        history = checkpoint.history
    if checkpoint.layout != layout:
        raise InputError(
            f"{path}: the task's model differs from the one in the checkpoint"
            f" ({layout.size} values instead of {checkpoint.layout.size}, or other tensors);"
            " use the task as it was, or another --output"
        )
    owner = _deal(checkpoint.individuals, topology)
    mine = [uid for uid, group in owner.items() if group == topology.group_number]
    weights = together(
        world,
        f"reading the weights of {path}",
        lambda: checkpoint.read_weights(mine) if topology.is_leader else {},
    )
    champion_weights = together(
        world,
        f"reading the weights of {path}",
        lambda: checkpoint.best_weights() if checkpoint.champion and world.rank == 0 else None,
    )
    population = Population(
        generation=checkpoint.generation,
        individuals=checkpoint.individuals,
        owner=owner,
        next_uid=checkpoint.next_uid,
        weights=weights,
        champion=checkpoint.champion,
        champion_weights=champion_weights,
    )
    return population, history


def initialize(recipe: Recipe, topology: Topology, learner: Learner) -> Population:
    """Make and score the initial population Psi^(0)."""
    individuals = [_newborn(recipe, uid) for uid in range(recipe.num_parents)]
    population = Population(
        generation=0,
        individuals=individuals,
        owner=_deal(individuals, topology),
        next_uid=recipe.num_parents + 1,  # one for the anchor
        weights={},
    )
    mine = population.owned_by(topology.group_number)

    def weights() -> dict[int, Weights]:
        if not topology.is_leader:
            return {}
        make = _weights_maker(recipe, learner)
        return {individual.uid: make(individual) for individual in mine}

    population.weights = together(topology.world, "making the initial population", weights)
    scored = []
    for individual in mine:
        learner.load(population.weights.get(individual.uid))
        scored.append(_score(individual, topology, learner))
    population.individuals = gather_records(topology, scored if topology.is_leader else [])
    refuse_if_all_failed(population.individuals, "the initial population")
    return population


def _newborn(recipe: Recipe, uid: int) -> Individual:
    if recipe.population.initialization == "random":
        return Individual(uid=uid, fitness=np.inf)
    return Individual(
        uid=uid,
        fitness=np.inf,
        noise_seed=str(rng.key(recipe.seed, 0, 0, uid, rng.Purpose.PERTURBATION)),
        sigma=recipe.population.perturbation_strength,
    )


def _weights_maker(recipe: Recipe, learner: Learner) -> Callable[[Individual], Weights]:
    """Return what makes an individual of the initial population (section 3.3)."""
    if recipe.population.initialization == "random":
        return lambda individual: learner.new_weights(individual.uid)
    path = recipe.population.initial_weights
    base = _read_weights(path, learner.layout) if path else learner.new_weights(0)

    def perturbed(individual: Individual) -> Weights:
        weights = base.copy()
        mutate(weights, int(individual.noise_seed), individual.sigma, learner.layout)
        return weights

    return perturbed


def read_anchor(recipe: Recipe, topology: Topology, learner: Learner) -> Anchor | None:
    """Read and score the recipe's anchor; its uid follows those of the initial population."""
    path = recipe.anchor.weights
    if not path:
        return None
    weights = together(
        topology.world,
        "reading the anchor",
        lambda: _read_weights(path, learner.layout) if topology.is_leader else None,
    )
    learner.load(weights)
    record = _score(
        Individual(uid=recipe.num_parents, fitness=np.inf, origin="anchor"), topology, learner
    )
    failure = first_told(topology.world, record.failure)
    if failure:
        raise InputError(f"anchor.weights = {path}: scoring it failed: {failure}")
    return Anchor(record, weights)


def _score(individual: Individual, topology: Topology, learner: Learner) -> Individual:
    """Return the record of the loaded individual with its fitness. Collective over the group."""
    try:
        score = learner.score()
    except IndividualFailed as error:
        failure = first_told(topology.group, str(error))
        if topology.is_leader:
            log.warning("individual %d failed: %s", individual.uid, failure)
        return msgspec.structs.replace(individual, failure=failure)
    failure = "" if np.isfinite(score.fitness) else NOT_FINITE
    return msgspec.structs.replace(
        individual, fitness=score.fitness, metrics=score.metrics, failure=failure
    )


def _read_weights(path: str, layout: Layout) -> Weights:
    weights: Weights = vector_from(layout, read_state_dict(Path(path)), path)
    return weights


def _deal(individuals: list[Individual], topology: Topology) -> dict[int, int]:
    """Give the individuals to the groups in turn."""
    return {i.uid: place % topology.num_groups for place, i in enumerate(individuals)}
