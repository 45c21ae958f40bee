"""The Python entry: recipe, communicator and task in; population, history and best model out.

`esgd run` does no more than this; programs that hold a communicator and notebooks call `run`.
"""

import os
import platform
import shlex
import socket
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch
from torch import nn

from esgd_hpc.checkpoint.export import state_dict_arrays
from esgd_hpc.checkpoint.writer import write_checkpoint
from esgd_hpc.config import Drawn, Recipe, recipe_data
from esgd_hpc.driver import Setting, evolve, generation_row
from esgd_hpc.errors import InputError
from esgd_hpc.layout import Layout
from esgd_hpc.learner import Learner
from esgd_hpc.parallel import averaging
from esgd_hpc.parallel.agreement import closed_together, on_root, together
from esgd_hpc.parallel.averaging import Averaging
from esgd_hpc.parallel.exchange import send_to_all
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import GenerationRow, Individual, Population, Weights
from esgd_hpc.progress import Progress, Silent
from esgd_hpc.sgd.optimizers import drawn_hyperparameters
from esgd_hpc.start import Resume, find_start, initialize, read_anchor, restore
from esgd_hpc.tasks import load_task
from esgd_hpc.tasks.base import Task

if TYPE_CHECKING:
    from mpi4py import MPI


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a run leaves; complete on every rank but for the population's weights."""

    finished: bool
    """False if the run was asked to stop before its last generation."""
    population: Population
    history: list[GenerationRow]
    best: Individual
    best_weights: Weights
    """Flat vector of the best individual, shape [P]."""
    layout: Layout
    task: Task
    output: Path | None
    """Folder of the checkpoints, None if none were written."""

    def best_model(self) -> nn.Module:
        """Return the best individual as a module on the CPU, in evaluation mode."""
        model = self.task.model()
        arrays = state_dict_arrays(self.layout, self.best_weights)
        model.load_state_dict({name: torch.as_tensor(array) for name, array in arrays.items()})
        return model.eval()


def run(
    recipe: Recipe,
    comm: "MPI.Comm",
    *,
    task: Task | None = None,
    output: Path | str | None = None,
    resume: Resume = "auto",
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Train the population that the recipe describes over the ranks of `comm`.

    Collective over `comm`, with the same arguments on every rank. `task` replaces the recipe's;
    `output` is the folder of the checkpoints, none are written without it; a run already there goes
    on from its newest complete generation unless `resume` says otherwise. `should_stop` is asked
    after each generation; True on any rank ends the run at a checkpoint.

    Raises InputError and RunError on every rank together.
    """
    progress = progress or Silent()
    folder = Path(output) if output is not None else None
    with closed_together(Topology(comm, recipe.topology.ranks_per_group)) as topology:
        found = on_root(comm, "looking for checkpoints", lambda: find_start(recipe, folder, resume))
        for note in found.notes:
            progress.note(note)
        device = together(comm, "choosing a device", lambda: _device(recipe, topology))
        with closed_together(_start_averaging(recipe, topology, device)) as group:
            task = task or together(
                comm,
                f"loading task {recipe.task}",
                lambda: load_task(recipe.task, recipe.task_options),
            )
            learner, hyperparameters = _build(task, recipe, topology, group, device)
            progress.note(_headline(recipe, topology, group.name, device, learner.layout))
            anchor = read_anchor(recipe, topology, learner)
            save = _saver(recipe, topology, learner.layout, folder)

            def report(population: Population, history: list[GenerationRow]) -> None:
                progress.generation(recipe, population, history)

            if found.path is not None:
                population, history = restore(found.path, topology, learner.layout)
            else:
                population = initialize(recipe, topology, learner)
                history = [generation_row(population, None, recipe, {})]
                save(population, history)
                report(population, history)
            setting = Setting(
                recipe=recipe,
                hyperparameters=hyperparameters,
                topology=topology,
                learner=learner,
                anchor=anchor,
                save=save,
                report=report,
                should_stop=should_stop,
            )
            finished = evolve(population, history, setting)
            best = population.best()
            return RunResult(
                finished=finished,
                population=population,
                history=history,
                best=best,
                best_weights=send_to_all(
                    comm,
                    population.weights.get(best.uid),
                    population.owner[best.uid] * topology.ranks_per_group,
                    learner.layout.size,
                ),
                layout=learner.layout,
                task=task,
                output=folder,
            )


def plan(recipe: Recipe, comm: "MPI.Comm", *, output: Path | str | None = None) -> str:
    """Return what `run` would do, in words, after the checks that it would make. Collective.

    Loads the task and builds its model, but trains nothing and writes nothing.
    """
    folder = Path(output) if output is not None else None
    with closed_together(Topology(comm, recipe.topology.ranks_per_group)) as topology:
        found = on_root(comm, "looking for checkpoints", lambda: find_start(recipe, folder, "auto"))
        device = together(comm, "choosing a device", lambda: _device(recipe, topology))
        with closed_together(_start_averaging(recipe, topology, device)) as group:
            task = together(
                comm,
                f"loading task {recipe.task}",
                lambda: load_task(recipe.task, recipe.task_options),
            )
            learner, hyperparameters = _build(task, recipe, topology, group, device)
            layout = learner.layout
            name = group.name
    mebibytes = layout.size * 4 / 2**20
    own = -(-recipe.num_parents // topology.num_groups)
    largest = max(_numbers(recipe.evolution.parents_per_child))
    lines = [
        _headline(recipe, topology, name, device, layout),
        f"one individual: {layout.size:,} values, {mebibytes:.3g} MiB",
        f"a leader holds at most {2 * own + largest + 1} individuals while it exchanges:"
        f" {(2 * own + largest + 1) * mebibytes:.3g} MiB",
        f"one checkpoint: {recipe.num_parents * mebibytes:.3g} MiB in {folder},"
        f" {recipe.checkpoint.keep} are kept",
        "a draw covers: "
        + ", ".join(["optimizer", "learning rate", "momentum", *sorted(hyperparameters)]),
        *found.notes,
        "recipe: " + msgspec.json.encode(recipe_data(recipe)).decode(),
    ]
    return "\n".join(lines)


def _numbers(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else value


# Setting up ---------------------------------------------------------------------------------------


def _start_averaging(recipe: Recipe, topology: Topology, device: torch.device) -> Averaging:
    chosen = together(
        topology.world,
        "choosing gradient averaging",
        lambda: averaging.resolve(recipe.topology.gradient_averaging, device.type),
    )
    return averaging.start(topology.world.bcast(chosen), topology.group, device.type)


def _build(
    task: Task, recipe: Recipe, topology: Topology, group: Averaging, device: torch.device
) -> tuple[Learner, dict[str, Drawn]]:
    return together(
        topology.world,
        f"building the model and data of task {recipe.task}",
        lambda: (
            Learner(task, recipe, group, device),
            drawn_hyperparameters(recipe, task.hyperparameters),
        ),
    )


def _saver(
    recipe: Recipe, topology: Topology, layout: Layout, folder: Path | None
) -> Callable[[Population, list[GenerationRow]], None]:
    """Return what writes a checkpoint, or does nothing without a folder."""
    provenance = _provenance()

    def save(population: Population, history: list[GenerationRow]) -> None:
        if folder is not None:
            write_checkpoint(
                folder,
                population,
                layout,
                recipe,
                history,
                topology,
                keep=recipe.checkpoint.keep,
                provenance=provenance,
            )

    return save


# What is known of the run -------------------------------------------------------------------------


def _device(recipe: Recipe, topology: Topology) -> torch.device:
    """Choose this rank's device: its GPU by local rank, or the CPU."""
    setting = recipe.topology.device
    available = torch.cuda.is_available()
    if setting == "cuda" and not available:
        raise InputError(
            'topology.device = "cuda": torch finds no GPU on a rank; ask the scheduler for GPUs,'
            ' install a CUDA build of torch, or set topology.device = "cpu"'
        )
    if setting == "cpu" or not available:
        return torch.device("cpu")
    if recipe.topology.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    device = torch.device("cuda", topology.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _headline(
    recipe: Recipe, topology: Topology, name: str, device: torch.device, layout: Layout
) -> str:
    offspring = f", {recipe.population.offspring} offspring" if recipe.method == "esgd" else ""
    groups = "1 group" if topology.num_groups == 1 else f"{topology.num_groups} groups"
    how = f" of {topology.ranks_per_group} ranks averaging by {name}"
    return (
        f"task {recipe.task}, method {recipe.method}: {recipe.num_parents} individuals of"
        f" {layout.num_parameters:,} parameters{offspring}, {recipe.generations} generations;"
        f" {groups}{how if topology.ranks_per_group > 1 else ' of 1 rank'}"
        f" on {device.type}"
    )


def _provenance() -> dict[str, str]:
    """Return what made the run, for its files."""
    return {
        "command": shlex.join(sys.argv),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("esgd-hpc", "torch", "numpy", "mpi4py", "h5py")},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
