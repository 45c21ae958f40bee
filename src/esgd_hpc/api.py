"""The Python entry: recipe, communicator and task in; population, history and best model out.

`esgd run` does no more than this; programs that hold a communicator and notebooks call `run`.
"""

import operator
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from esgd_hpc.attempts import count_attempt
from esgd_hpc.checkpoint.export import state_dict_arrays
from esgd_hpc.checkpoint.lock import FolderLock
from esgd_hpc.checkpoint.writer import CheckpointWriter
from esgd_hpc.config import Recipe
from esgd_hpc.data.store import Stored, missing_data
from esgd_hpc.driver import Setting, evolve, measure_diversity
from esgd_hpc.errors import InputError
from esgd_hpc.history import GenerationRow, History, generation_row
from esgd_hpc.layout import Layout
from esgd_hpc.learner import Built
from esgd_hpc.learner.null import null_learner
from esgd_hpc.parallel.agreement import closed_together, on_root, together
from esgd_hpc.parallel.exchange import send_to_all
from esgd_hpc.parallel.interruption import Interruption
from esgd_hpc.parallel.topology import Topology, check_world_size
from esgd_hpc.plan_text import plan_text
from esgd_hpc.population import Individual, Population, Weights
from esgd_hpc.progress import Progress, Silent
from esgd_hpc.provenance import provenance
from esgd_hpc.saving import Saving
from esgd_hpc.sgd.optimizers import drawn_hyperparameters
from esgd_hpc.start import Found, Resume, find_start, initialize, read_anchor, restore
from esgd_hpc.tasks.needs import Needs, needs_of
from esgd_hpc.tasks.null import NULL
from esgd_hpc.tensorboard_log import TensorBoardLog, check_tensorboard
from esgd_hpc.time_left import last_seconds, seconds_left
from esgd_hpc.underway import Underway

if TYPE_CHECKING:
    from mpi4py import MPI
    from torch import nn

    from esgd_hpc.tasks.base import Task


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a run leaves; complete on every rank but for the population's weights."""

    unfinished: Underway | None
    """The generation that the run was stopped in or before; None if it got to its last one."""
    population: Population
    history: list[GenerationRow]
    best: Individual
    best_weights: Weights
    """Flat vector of the best individual, shape [P]."""
    layout: Layout
    task: "Task | None"
    """None for the null task."""
    output: Path | None
    """Folder of the checkpoints, None if none were written."""

    @property
    def finished(self) -> bool:
        """Whether the run got to its last generation."""
        return self.unfinished is None

    def best_model(self) -> "nn.Module":
        """Return the best individual as a module on the CPU, in evaluation mode.

        Raises InputError for the null task, which has no network.
        """
        if self.task is None:
            raise InputError(f'task = "{NULL}" has no network; its best weights are best_weights')
        import torch

        model = self.task.model()
        arrays = state_dict_arrays(self.layout, self.best_weights)
        model.load_state_dict({name: torch.as_tensor(array) for name, array in arrays.items()})
        return model.eval()


def run(
    recipe: Recipe,
    comm: "MPI.Comm",
    *,
    task: "Task | None" = None,
    output: Path | str | None = None,
    resume: Resume = "auto",
    changing: Collection[str] = (),
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    should_save: Callable[[], bool] = lambda: False,
    started: float | None = None,
) -> RunResult:
    """Train the population that the recipe describes over the ranks of `comm`.

    Collective over `comm`, with the same arguments on every rank. `task` replaces the recipe's;
    `output` is the folder of the checkpoints, none are written without it; a run already there goes
    on from its newest complete generation unless `resume` says otherwise. Its recipe must be the
    same but for the keys in `changing`, which are changed on purpose from there on: both values are
    recorded in the history. `should_stop` is asked before each epoch and child; True on any rank
    ends the run, with all that is finished saved. So does the end of the time that `run.time_limit`
    or the scheduler gives, which counts from `started` (time.monotonic(), now by default).
    `should_save` is asked after each generation, and makes a checkpoint.

    Raises InputError and RunError on every rank together. Any other exception is raised on its
    rank alone, and the others may wait for it: start programs under `python -m mpi4py`, which then
    aborts the world. Leaves torch's number of threads, the seeds of global generators and, on CPUs,
    the C library's thresholds for giving memory back (`heap.py`) changed.
    """
    progress = progress or Silent()
    started = time.monotonic() if started is None else started
    folder = Path(output) if output is not None else None
    lock = FolderLock(folder) if folder is not None else None
    try:
        if lock is not None:
            for note in on_root(comm, f"locking {folder}", lock.acquire):
                progress.note(note)
        with _prepared(recipe, comm, folder, resume, changing, task) as ready:
            for note in ready.found.notes:
                progress.note(note)
            if folder is not None and ready.found.state:
                state = ready.found.state
                on_root(
                    comm, f"counting attempts in {folder}", lambda: count_attempt(folder, state)
                )
            progress.note(ready.headline)
            if recipe.fitness.data == "validation" and _is_same(ready.built.task):
                progress.note(
                    "the validation data is the training data: set data apart in task_options, or"
                    ' say so by fitness.data = "training"'
                )
            return _train(recipe, ready, folder, progress, should_stop, should_save, started)
    finally:
        if lock is not None:
            lock.release()


def plan(
    recipe: Recipe,
    comm: "MPI.Comm",
    *,
    output: Path | str | None = None,
    resume: Resume = "auto",
    changing: Collection[str] = (),
    ranks: int | None = None,
) -> str:
    """Return what `run` would do, in words, after the checks that it would make. Collective.

    Loads the task and builds its model, but trains nothing and writes nothing. With `ranks` it is
    for a job of so many ranks, which need not exist. What can be told without data that is not
    prepared yet is told.
    """
    folder = Path(output) if output is not None else None
    needs = together(comm, f"loading task {recipe.task}", lambda: needs_of(recipe))
    missing: list[Stored] = []
    for found in comm.allgather(needs.missing):
        missing = missing or found
    data_lines = _data_lines(needs)
    if ranks is None and not missing:
        with _prepared(recipe, comm, folder, resume, changing, None) as ready:
            return plan_text(
                recipe,
                ready.headline,
                needs.layout,
                ready.topology.num_groups,
                ready.built.hyperparameters,
                folder,
                [*data_lines, *ready.found.notes],
            )

    def text() -> str:
        found = find_start(recipe, folder, resume, changing)
        size, each = ranks or comm.size, recipe.topology.ranks_per_group
        check_world_size(size, each)
        device = recipe.topology.device
        averaging = recipe.topology.gradient_averaging
        headline = _headline(recipe, size // each, each, averaging, device, needs.layout)
        declared = drawn_hyperparameters(recipe, needs.hyperparameters)
        notes = [*data_lines, *found.notes]
        if missing:
            notes.append(f"missing: {missing_data(missing[0])}")
        return plan_text(recipe, headline, needs.layout, size // each, declared, folder, notes)

    return on_root(comm, f"planning task {recipe.task}", text)


# Setting up ---------------------------------------------------------------------------------------


class _Ready(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a run needs before it trains; complete on every rank."""

    topology: Topology
    found: Found
    built: Built
    headline: str


@contextmanager
def _prepared(
    recipe: Recipe,
    comm: "MPI.Comm",
    folder: Path | None,
    resume: Resume,
    changing: Collection[str],
    task: "Task | None",
) -> Iterator[_Ready]:
    """Make groups and their learner, and look for checkpoints, for a `with` block. Collective."""
    with closed_together(Topology(comm, recipe.topology.ranks_per_group)) as topology:
        if recipe.logging.tensorboard:
            on_root(comm, "looking for TensorBoard", lambda: check_tensorboard(folder))
        found = on_root(
            comm,
            "looking for checkpoints",
            lambda: find_start(recipe, folder, resume, changing),
        )
        with _learner(recipe, topology, task) as built:
            headline = _headline(
                recipe,
                topology.num_groups,
                topology.ranks_per_group,
                built.averaging,
                built.device_type,
                built.learner.layout,
            )
            yield _Ready(topology=topology, found=found, built=built, headline=headline)


def _learner(
    recipe: Recipe, topology: Topology, task: "Task | None"
) -> AbstractContextManager[Built]:
    if task is None and recipe.task == NULL:
        return null_learner(recipe, topology)
    from esgd_hpc.learner.build import network_learner  # and with it torch

    return network_learner(recipe, topology, task)


def _train(
    recipe: Recipe,
    ready: _Ready,
    folder: Path | None,
    progress: Progress,
    should_stop: Callable[[], bool],
    should_save: Callable[[], bool],
    started: float,
) -> RunResult:
    topology, learner = ready.topology, ready.built.learner
    writer = None
    if folder is not None:
        made_by = on_root(topology.world, "looking for what made the run", provenance)
        made_by["device"] = ready.built.device_name
        found = ready.found
        writer = CheckpointWriter(
            folder,
            learner.layout,
            recipe,
            topology,
            made_by,
            found.generation,
            found.saving_seconds,
        )
    saving = Saving(writer, recipe.checkpoint, topology)

    board = None
    if recipe.logging.tensorboard and folder is not None and topology.world.rank == 0:
        board = TensorBoardLog(folder)

    def report(population: Population, history: History) -> None:
        progress.generation(recipe, population, history.rows)
        if board is not None:
            board.generation(population, history)

    anchor = read_anchor(recipe, topology, learner)
    if ready.found.path is not None:
        path, changes = ready.found.path, ready.found.changes
        population, history, underway = restore(path, changes, topology, learner)
    else:
        underway = None
        population = initialize(recipe, topology, learner)
        diversity = measure_diversity(population, topology, learner.layout)
        history = History(rows=[generation_row(population, None, recipe, {}, diversity)])
        if topology.world.rank == 0:
            uids = {i.uid for i in population.individuals}
            history.remember([], [], [], uids, population)
        saving.save(population, history, must=True)
        report(population, history)
    interruption = Interruption(
        topology, should_stop, seconds_left(recipe, topology.world, started)
    )
    if ready.found.path is not None:
        interruption.expect(*last_seconds(population, history, topology.world))
    setting = Setting(
        recipe=recipe,
        hyperparameters=ready.built.hyperparameters,
        topology=topology,
        learner=learner,
        anchor=anchor,
        saving=saving,
        report=report,
        interruption=interruption,
        should_save=should_save,
    )
    with closed_together(saving), closing(board) if board else nullcontext():
        unfinished = evolve(population, history, setting, underway)
    if unfinished and not interruption.requested():
        progress.note("nothing more can end before the time does")
    best = population.best()
    return RunResult(
        unfinished=unfinished,
        population=population,
        history=history.rows,
        best=best,
        best_weights=send_to_all(
            topology.world,
            *_holder_of_best(population, topology),
            learner.layout.size,
        ),
        layout=learner.layout,
        task=ready.built.task,
        output=folder,
    )


def _holder_of_best(population: Population, topology: Topology) -> tuple[Weights | None, int]:
    """Return the weights of the best, None where this rank has none, and the rank that has them."""
    if population.champion is not None:
        return population.champion_weights, 0
    uid = population.best().uid
    return population.weights.get(uid), population.owner[uid] * topology.ranks_per_group


def _is_same(task: "Task | None") -> bool:
    """Whether a task validates on what it trains on."""
    if task is None:
        return False
    data, other = task.training, task.validation
    if isinstance(data, list | tuple) and isinstance(other, list | tuple):
        return len(data) == len(other) and all(map(operator.is_, data, other))
    return data is other


# What is known of the run -------------------------------------------------------------------------


def _headline(
    recipe: Recipe, num_groups: int, ranks: int, averaging: str, device: str, layout: Layout
) -> str:
    offspring = f", {recipe.population.offspring} offspring" if recipe.method == "esgd" else ""
    groups = "1 group" if num_groups == 1 else f"{num_groups} groups"
    how = f" of {ranks} ranks averaging by {averaging}"
    return (
        f"task {recipe.task}, method {recipe.method}: {recipe.num_parents} individuals of"
        f" {layout.num_parameters:,} parameters{offspring}, {recipe.generations} generations;"
        f" {groups}{how if ranks > 1 else ' of 1 rank'} on {device}"
    )


def _data_lines(needs: Needs) -> list[str]:
    """Return how much of prepared data a node holds."""
    mebibytes = needs.data_bytes / 2**20
    told = f"data: {mebibytes:.4g} MiB, once on each node; without test data on each GPU too"
    return [told] if needs.data_bytes else []
