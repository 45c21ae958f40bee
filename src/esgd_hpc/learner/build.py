"""How all ranks of a run make the learner of their groups: device, averaging, task, data, model."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from esgd_hpc import pulse
from esgd_hpc.config import Drawn, Recipe
from esgd_hpc.data.store import missing_data
from esgd_hpc.device import device_name
from esgd_hpc.errors import InputError
from esgd_hpc.heap import keep_freed_memory
from esgd_hpc.learner import Built
from esgd_hpc.learner.network import NetworkLearner
from esgd_hpc.parallel import averaging
from esgd_hpc.parallel.agreement import closed_together, on_root, together
from esgd_hpc.parallel.averaging import Averaging
from esgd_hpc.parallel.devices import device_of_rank
from esgd_hpc.parallel.node_memory import NodeMemory
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.sgd.optimizers import drawn_hyperparameters
from esgd_hpc.tasks import data_in_memory, load_task, missing_data_of, read_data, stored_data
from esgd_hpc.tasks.base import Task

if TYPE_CHECKING:
    from mpi4py import MPI


@contextmanager
def network_learner(recipe: Recipe, topology: Topology, task: Task | None) -> Iterator[Built]:
    """Give the learner of a task's network for a `with` block. Collective over the world.

    The task is the recipe's unless one is given. Raises InputError on every rank where one lacks
    something, or ranks differ in what must be the same.
    """
    world = topology.world
    device = device_of_rank(recipe.topology, topology)
    _refuse_different(world, "ranks compute on different kinds of device", device.type)
    if device.type == "cpu":
        keep_freed_memory()
    with (
        closed_together(_start_averaging(recipe, topology, device)) as group,
        closed_together(NodeMemory(topology.node)) as memory,
    ):
        loading = f"loading task {recipe.task}"
        task = task or together(world, loading, lambda: _load(recipe))
        _refuse_different_data(world, task)
        data = together(world, "reading the data", lambda: read_data(task, memory.read))
        with data_in_memory(task, data):
            learner, hyperparameters = together(
                world,
                f"building the model and data of task {recipe.task}",
                lambda: _make(task, recipe, group, device),
            )
            fingerprint = together(world, "comparing the ranks", learner.fingerprint)
            _refuse_different(world, f"task {recipe.task} differs from rank to rank", fingerprint)
            yield Built(
                learner=learner,
                task=task,
                hyperparameters=hyperparameters,
                device_type=device.type,
                device_name=device_name(device),
                averaging=group.name,
            )


def _load(recipe: Recipe) -> Task:
    with pulse.untimed(f"loading task {recipe.task}"):  # code of users
        return load_task(recipe.task, recipe.task_options)


def _start_averaging(recipe: Recipe, topology: Topology, device: torch.device) -> Averaging:
    world = topology.world
    name = on_root(
        world,
        "choosing gradient averaging",
        lambda: averaging.resolve(recipe.topology.gradient_averaging, device.type),
    )
    together(
        world,
        f"starting gradient averaging by {name}",
        lambda: averaging.check_usable(name, topology.group),
    )
    return averaging.start(name, topology.group, device.type)


def _make(
    task: Task, recipe: Recipe, group: Averaging, device: torch.device
) -> tuple[NetworkLearner, dict[str, Drawn]]:
    hyperparameters = drawn_hyperparameters(recipe, task.hyperparameters)
    learner = NetworkLearner(task, recipe, group, device)
    learner.check_hyperparameters(hyperparameters)
    return learner, hyperparameters


def _refuse_different(comm: "MPI.Comm", what: str, value: str) -> None:
    """Raise InputError on every rank if the value is not the same on all. Collective."""
    with pulse.waiting("waiting for all ranks to compare notes"):
        values = comm.allgather(value)
    other = next((rank for rank, text in enumerate(values) if text != values[0]), None)
    if other is not None:
        raise InputError(
            f"{what}: rank 0 has {values[0]}, rank {other} has {values[other]}; all ranks must have"
            " the same"
        )


def _refuse_different_data(comm: "MPI.Comm", task: Task) -> None:
    """Raise InputError on every rank where one lacks prepared data or sees other data. Collective.

    Ranks of a node read together, so they must agree on what there is to read.
    """
    with pulse.waiting("waiting for all ranks to look for data"):
        found = comm.allgather(missing_data_of(task))
    for missing in found:
        if missing:
            raise missing_data(missing[0])
    seen = ", ".join(f"{s.name} {s.dtype} {s.shape} from {s.first}" for s in stored_data(task))
    _refuse_different(comm, "prepared data differs from rank to rank", seen)
