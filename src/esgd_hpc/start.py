"""Where a run starts from: the newest checkpoint in its folder, or a new population."""

import json
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from esgd_hpc import pulse, rng
from esgd_hpc.checkpoint import files
from esgd_hpc.checkpoint.export import read_state_dict, vector_from
from esgd_hpc.checkpoint.lock import refuse_file
from esgd_hpc.checkpoint.reader import Checkpoint, open_checkpoint
from esgd_hpc.checkpoint.verify import newest_valid, verify_checkpoint
from esgd_hpc.config import Recipe, differences, recipe_data
from esgd_hpc.errors import InputError
from esgd_hpc.evolution.operators import mutate
from esgd_hpc.evolution.step import Anchor
from esgd_hpc.history import History, RecipeChange
from esgd_hpc.layout import Layout
from esgd_hpc.learner import IndividualFailed, Learner
from esgd_hpc.parallel.agreement import first_told, on_root, together
from esgd_hpc.parallel.exchange import gather_records
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import NOT_FINITE, Individual, Population, Weights
from esgd_hpc.recipe_file import recipe_from
from esgd_hpc.sgd.step import refuse_if_all_failed
from esgd_hpc.underway import Underway

log = logging.getLogger(__name__)

Resume = Literal["auto", "never", "require"]


class Found(msgspec.Struct, frozen=True):
    """What rank 0 found in the output folder, and says about it."""

    path: Path | None = None
    generation: int | None = None
    """Of the newest complete checkpoint, which the one at `path` may be later than."""
    state: str = "a new population"
    """How far the run has come, in words; empty where nothing is left to do."""
    saving_seconds: float = 0.0
    """What the slowest checkpoint took."""
    notes: list[str] = []
    changes: list[RecipeChange] = []
    """Keys of the recipe that are changed on purpose from here on."""


ANOTHER_RUN = ("method", "seed")
"""Keys that cannot change in a run, even on purpose."""
CHANGE_FITNESS = ("task", "task_options", "fitness")
"""Keys whose change makes recorded fitnesses mean something else."""


def find_start(
    recipe: Recipe, folder: Path | None, resume: Resume, changing: Collection[str]
) -> Found:
    """Choose the checkpoint to go on from. On rank 0 only.

    `changing` names the keys that may differ from the recipe of the checkpoint.
    """
    if folder is None:
        return Found()
    refuse_file(folder)
    latest = folder / files.LATEST
    if latest.exists() and not latest.is_symlink():  # a copy that followed links
        raise InputError(f"--output {folder}: {latest} is no link of ours; rename or remove it")
    path, notes = newest_valid(folder)
    if path is None:
        if files.generations(folder):
            raise InputError(
                f"--output {folder}: none of its generations can be read ({'; '.join(notes)});"
                " `esgd verify` says more; move them away, or name another --output"
            )
        if resume == "require":
            raise InputError(f"--resume require: no complete generation in {folder}")
        return Found()
    if resume == "never":
        raise InputError(
            f"--resume never: {folder} already holds a run ({path.name}); name another --output"
        )
    checkpoint = open_checkpoint(path)
    changes = _changes(checkpoint, recipe, folder, changing)
    interrupted = _find_interrupted(folder, checkpoint, recipe, notes)
    if interrupted and interrupted.underway:  # it has the changes already
        newest, changes = interrupted, []
        made = interrupted.underway
        state = f"generation {made.generation}, {made.told()}"
        going_on = f"{newest.path} is verified; going on in {state}"
    else:
        newest, state = checkpoint, f"generation {checkpoint.generation}"
        going_on = f"{path} is verified; going on from {state}"
    if newest.generation >= recipe.last_generation:
        state, going_on = "", f"{path} is verified and the last generation: nothing left to do"
    notes += [f"changed on purpose: {c.key}: {c.old} -> {c.new}" for c in changes]
    if newest.ranks_per_group != recipe.topology.ranks_per_group:
        notes.append(
            f"going on with {recipe.topology.ranks_per_group} ranks per group instead of"
            f" {newest.ranks_per_group}: last bits may differ"
        )
    notes.append(going_on)
    return Found(
        path=newest.path,
        generation=checkpoint.generation,
        state=state,
        saving_seconds=newest.saving_seconds,
        notes=notes,
        changes=changes,
    )


def _find_interrupted(
    folder: Path, newest: Checkpoint, recipe: Recipe, notes: list[str]
) -> Checkpoint | None:
    """Return what was saved of a generation that was interrupted, if it is of use.

    Raises InputError where another recipe would make generations anew that are only there.
    """
    for path in files.interrupted(folder):
        problems = verify_checkpoint(path)
        if problems:
            notes.append(f"{path.name} is skipped: {problems[0]}")
            continue
        found = _with_known_keys(open_checkpoint(path))
        if found.generation < newest.generation or found.underway is None:
            continue
        different = differences(found.recipe, recipe_data(recipe))
        if not different:
            return found
        if found.generation > newest.generation:
            raise InputError(
                f"--output {folder} holds a run of another recipe"
                f" ({'; '.join(map(str, different))}), stopped in generation"
                f" {found.underway.generation}, and the newest complete checkpoint is generation"
                f" {newest.generation}: start it with its own recipe until it has another one"
                f" (checkpoint.every = 1), or remove {path} to go back to generation"
                f" {newest.generation}"
            )
        notes.append(
            f"{path.name} is skipped: the recipe has changed, so that generation"
            f" {found.underway.generation} begins anew"
        )
    return None


def _with_known_keys(checkpoint: Checkpoint) -> Checkpoint:
    """Return it with the keys that its recipe, of another version, may not have known."""
    with suppress(InputError):
        known = recipe_data(recipe_from(checkpoint.recipe))
        checkpoint = msgspec.structs.replace(checkpoint, recipe=known)
    return checkpoint


def _changes(
    checkpoint: Checkpoint, recipe: Recipe, folder: Path, changing: Collection[str]
) -> list[RecipeChange]:
    """Return how the recipe differs. Raises InputError where that is not on purpose."""
    checkpoint = _with_known_keys(checkpoint)
    task = checkpoint.recipe.get("task")
    if task != recipe.task and not any(_within(name, "task") for name in changing):
        raise InputError(
            f"--output {folder} holds a run of task {task}, not {recipe.task};"
            " name another --output"
        )
    different = differences(checkpoint.recipe, recipe_data(recipe))
    unnamed = [d for d in different if not any(_within(name, d.key) for name in changing)]
    if unnamed:
        first = unnamed[0].key
        raise InputError(
            f"--output {folder} holds a run of another recipe ({'; '.join(map(str, unnamed))});"
            " name another --output, or give it the same recipe; to change a running recipe on"
            f" purpose, name each key: --set {first}=..."
        )
    if different and checkpoint.generation >= recipe.last_generation:
        raise InputError(
            f"--output {folder} holds a finished run of another recipe"
            f" ({'; '.join(map(str, different))}); name another --output"
        )
    another = [d for d in different if d.key in ANOTHER_RUN]
    if another:
        raise InputError(
            f"--output {folder} holds a run that has begun with another recipe"
            f" ({'; '.join(map(str, another))}); another {' and '.join(d.key for d in another)} is"
            " another run: name another --output"
        )
    if len(checkpoint.individuals) != recipe.num_parents:
        raise InputError(
            f"--output {folder} holds a population of {len(checkpoint.individuals)} individuals and"
            f" cannot go on with {recipe.num_parents}: population.parents cannot change in a run,"
            ' nor method from or to "single"; name another --output'
        )
    return [
        RecipeChange(
            generation=checkpoint.generation,
            key=d.key,
            old=json.dumps(d.old),
            new=json.dumps(d.new),
        )
        for d in different
    ]


def _within(name: str, key: str) -> bool:
    """Tell whether naming `name` covers a difference in `key`: itself, around it or inside it."""
    return f"{key}.".startswith(f"{name}.") or f"{name}.".startswith(f"{key}.")


def restore(
    path: Path, changes: list[RecipeChange], topology: Topology, learner: Learner
) -> tuple[Population, History, Underway | None]:
    """Read a checkpoint: rank 0 the records, each leader the weights that it will own.

    With it comes the generation that was interrupted, if one was. Rank 0 gets the whole history,
    the others its rows. Individuals are scored again where changes of the recipe ask for it.
    """
    world, layout = topology.world, learner.layout
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
    underway, individuals = checkpoint.underway, checkpoint.individuals
    if underway and not underway.is_trained:
        individuals = underway.before
    population = Population(
        generation=checkpoint.generation,
        # A finished run that goes on: its test scores are no longer those of its end.
        individuals=[_without_test_scores(i) for i in individuals],
        owner=owner,
        next_uid=checkpoint.next_uid,
        weights=weights,
        champion=checkpoint.champion and _without_test_scores(checkpoint.champion),
        champion_weights=champion_weights,
    )
    if world.rank == 0:
        history.changes += changes
    if any(_within(key, change.key) for key in CHANGE_FITNESS for change in changes):
        _score_again(population, topology, learner)
    return population, history, underway


def _without_test_scores(individual: Individual) -> Individual:
    kept = {k: v for k, v in individual.metrics.items() if not k.startswith("test_")}
    return msgspec.structs.replace(individual, metrics=kept)


def _score_again(population: Population, topology: Topology, learner: Learner) -> None:
    """Give all individuals the fitness that the changed recipe means. The champion ends here."""
    _score_all(population, topology, learner)
    refuse_if_all_failed(population.individuals, "the population under the changed recipe")
    population.champion = population.champion_weights = None


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

    def weights() -> dict[int, Weights]:
        if not topology.is_leader:
            return {}
        make = _weights_maker(recipe, learner)
        found = {}
        for individual in population.owned_by(topology.group_number):
            found[individual.uid] = make(individual)
            pulse.progress()
        return found

    population.weights = together(topology.world, "making the initial population", weights)
    _score_all(population, topology, learner)
    refuse_if_all_failed(population.individuals, "the initial population")
    return population


def _score_all(population: Population, topology: Topology, learner: Learner) -> None:
    scored = []
    for individual in population.owned_by(topology.group_number):
        learner.load(population.weights.get(individual.uid))
        scored.append(_score(individual, topology, learner))
    population.individuals = gather_records(topology, scored if topology.is_leader else [])


def _newborn(recipe: Recipe, uid: int) -> Individual:
    if recipe.population.initialization == "random":
        return Individual(uid=uid, fitness=np.inf)
    strength = recipe.population.perturbation_strength
    stream = rng.stream(recipe.seed, 0, 1, uid, rng.Purpose.PERTURBATION)
    return Individual(
        uid=uid,
        fitness=np.inf,
        noise_seed=str(rng.key(recipe.seed, 0, 0, uid, rng.Purpose.PERTURBATION)),
        sigma=float(stream.uniform(strength.low, strength.high)),
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
    if not path or recipe.method != "esgd":
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
        return msgspec.structs.replace(individual, fitness=np.inf, metrics={}, failure=failure)
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
