"""`esgd check`: whether a job can run here, asked by the ranks of that job.

    facts    what one rank sees around it          judge    what the facts of all ranks mean
    folder   what the output folder can do         rows     a finding, and the table of them

Nothing trains and nothing stays behind. Torch is imported where GPUs, a recipe's task (on rank 0)
or a recipe's gradient averaging ask for it. A check that fails becomes a row, the others go on.
"""

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from esgd_hpc import pulse
from esgd_hpc.config import Recipe, TopologySettings
from esgd_hpc.data.store import missing_data
from esgd_hpc.errors import EsgdError, InputError
from esgd_hpc.launch import check_world
from esgd_hpc.parallel.agreement import closed_together, on_root, together
from esgd_hpc.parallel.probe import (
    allreduce_speed,
    averaging_speed,
    built_with,
    nccl_version,
    ring_speed,
    thread_level,
)
from esgd_hpc.parallel.topology import Topology, check_world_size
from esgd_hpc.parallel.watchdog import watching
from esgd_hpc.parallel.world import library_version
from esgd_hpc.preflight import judge
from esgd_hpc.preflight.facts import Facts, look_around
from esgd_hpc.preflight.folder import folder_rows
from esgd_hpc.preflight.rows import Row, Status, failed
from esgd_hpc.tasks.needs import Needs, needs_of

if TYPE_CHECKING:
    import torch
    from mpi4py import MPI

MINUTES_TO_ANSWER = 5.0
"""A step that takes longer hangs; thousands of ranks may need a while to import torch."""
_SLOW = 0.3
"""GB/s between nodes below which MPI is likely not on the fast network."""


def check(
    world: "MPI.Intracomm",
    environment: Mapping[str, str],
    folder: Path,
    recipe: Recipe | None = None,
) -> list[Row]:
    """Return what is found, the same on every rank. Collective over the world."""
    rows: list[Row] = []
    try:
        check_world(world.size, environment, library_version())
    except InputError as error:
        # Each rank believes to be alone: what it would find further on is not so.
        return [failed("ranks", "launcher", error)]
    with watching(world, MINUTES_TO_ANSWER, 1):
        each = recipe.topology.ranks_per_group if recipe else world.size
        divides = world.size % each == 0
        with closed_together(Topology(world, each if divides else 1)) as topology:
            rows = _rows(topology, environment, folder, recipe, divides)
    return rows


def _rows(
    topology: Topology,
    environment: Mapping[str, str],
    folder: Path,
    recipe: Recipe | None,
    divides: bool,
) -> list[Row]:
    world = topology.world
    settings = recipe.topology if recipe else TopologySettings()
    # Before torch and its thread pools are loaded.
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.threads_per_rank))
    pulse.doing("looking at ranks, CPUs, GPUs and memory")
    node: int = topology.node.bcast(world.rank)
    mine = together(
        world,
        "looking around",
        lambda: look_around(world.rank, node, library_version(), thread_level(), environment),
    )
    facts: list[Facts] = world.allgather(mine)
    installed = world.allgather(importlib.util.find_spec("horovod") is not None)
    has_horovod = all(installed)
    averages = recipe is not None and divides and topology.ranks_per_group > 1
    horovod = averages and _may_be_horovod(settings, has_horovod)

    rows = _on_root(
        world, "mpi", lambda: judge.mpi_rows(facts, metadata.version("mpi4py"), horovod)
    )
    rows += _on_root(world, "ranks", lambda: judge.world_rows(facts, environment))
    if recipe is not None:
        rows += _on_root(world, "groups", lambda: _group_rows(facts, recipe))
    threads = settings.threads_per_rank
    rows += _on_root(world, "cpu", lambda: judge.cpu_rows(facts, threads))
    rows += _on_root(world, "gpu", lambda: judge.gpu_rows(facts, settings))

    device: torch.device | None = None
    gpu_bytes = 0
    if any(rank.uses_gpus for rank in facts) and settings.device != "cpu":
        pulse.doing("looking for GPUs")
        found, device, gpu_bytes = _bind(topology, settings)
        rows += found
        averages = averages and device is not None
    if any(installed) and not has_horovod:
        rows.append(
            Row(
                "averaging",
                "horovod",
                "failed",
                f"installed for rank {installed.index(True)}, not for rank"
                f" {installed.index(False)}",
                "use one environment on all nodes",
            )
        )
    rows += _averaging_rows(topology, settings, averages, has_horovod, device)
    pulse.doing("measuring how fast messages travel")
    rows += _network_rows(topology, facts, "a group" if recipe else "all ranks")
    needs = None
    if recipe is not None:
        pulse.doing(f"making task {recipe.task}")
        found, needs = _task_rows(topology, facts, recipe)
        rows += found
    data_bytes = needs.data_bytes if needs else 0
    if recipe is not None and needs is not None and divides:
        size = needs.layout.size
        rows += _on_root(
            world,
            "memory",
            lambda: judge.memory_rows(facts, recipe, size, data_bytes, gpu_bytes),
        )
    rows += _on_root(world, "memory", lambda: judge.shared_memory_rows(facts, data_bytes))
    pulse.doing(f"writing in {folder}")
    checkpoint_bytes = 4 * needs.layout.size * recipe.num_parents if recipe and needs else 0
    kept = recipe.checkpoint.keep if recipe else 0
    rows += folder_rows(world, facts, folder, checkpoint_bytes, kept)
    limit = recipe.run.time_limit if recipe else 0.0
    rows += _on_root(world, "job", lambda: judge.job_rows(environment, limit))
    return rows


def _on_root(world: "MPI.Comm", area: str, action: Callable[[], list[Row]]) -> list[Row]:
    """Return the rows that rank 0 finds; one that tells of the failure where that fails."""
    try:
        return on_root(world, f"checking {area}", action)
    except EsgdError as error:
        return [failed(area, "check", error)]


# Each area ----------------------------------------------------------------------------------------


def _may_be_horovod(settings: TopologySettings, has_horovod: bool) -> bool:
    choice = settings.gradient_averaging
    return choice == "horovod" or (choice == "auto" and has_horovod)


def _group_rows(facts: Sequence[Facts], recipe: Recipe) -> list[Row]:
    try:
        check_world_size(len(facts), recipe.topology.ranks_per_group)
    except InputError as error:
        return [failed("groups", "number", error)]
    return judge.group_rows(facts, recipe)


def _bind(
    topology: Topology, settings: TopologySettings
) -> "tuple[list[Row], torch.device | None, int]":
    """Let every rank take the device that a run would give it. Collective over the world.

    Returns this rank's device as well, None where a run would have none, and the bytes of the
    smallest GPU.
    """
    from esgd_hpc.device import device_bytes, device_name
    from esgd_hpc.parallel.devices import device_of_rank

    world = topology.world

    def described(device: "torch.device") -> tuple[str, str, int]:
        return str(device), device_name(device), device_bytes(device)

    try:
        device = device_of_rank(settings, topology)
        taken = world.allgather(together(world, "naming GPUs", lambda: described(device)))
        nccl = on_root(world, "looking for NCCL", nccl_version)
    except EsgdError as error:
        return [failed("gpu", "binding", error)], None, 0
    without = [rank for rank, (place, _, _) in enumerate(taken) if place == "cpu"]
    if len(without) == len(taken):
        told = "torch finds no GPU that works on any rank"
        remedy = "load the driver's module, or ask the scheduler for GPUs (--gpus-per-task=1)"
        return [Row("gpu", "binding", "warning", told, remedy)], device, 0
    if without:
        told = f"torch finds no GPU on rank {without[0]}, but on others"
        remedy = "give every task a GPU: srun --gpus-per-task=1, or --gpus-per-node"
        return [Row("gpu", "binding", "failed", told, remedy)], None, 0
    names = " and ".join(sorted({name for _, name, _ in taken}))
    shown = ", ".join(f"rank {rank} takes {place}" for rank, (place, _, _) in enumerate(taken[:4]))
    told = f"{names}: {shown}{', ...' if len(taken) > 4 else ''}"
    rows = [Row("gpu", "binding", "ok", told), Row("gpu", "NCCL", "ok", nccl or "torch has none")]
    return rows, device, min(size for _, _, size in taken)


def _averaging_rows(
    topology: Topology,
    settings: TopologySettings,
    averages: bool,
    has_horovod: bool,
    device: "torch.device | None",
) -> list[Row]:
    """Say what Horovod is, and let groups average as the recipe would. Collective."""
    world = topology.world
    on_gpu = device is not None and device.type == "cuda"
    rows = [Row("averaging", "horovod", "ok", "not installed")]
    if has_horovod:
        horovod = _may_be_horovod(settings, has_horovod) and averages
        rows = _on_root(world, "averaging", lambda: [_horovod_row(on_gpu, ask=on_gpu or horovod)])
    if not averages:
        return rows
    name = settings.gradient_averaging
    if name == "auto":
        name = "horovod" if has_horovod else "torch" if on_gpu else "mpi"
    if name == "mpi" and not on_gpu:
        return rows  # the network's rows measure the very same
    pulse.doing(f"averaging by {name}")
    try:
        import torch

        speed = averaging_speed(name, topology, device or torch.device("cpu"))
        return [*rows, Row("averaging", "group", "ok", f"by {name}: {speed}")]
    except EsgdError as error:
        return [*rows, failed("averaging", "group", error)]


def _horovod_row(on_gpu: bool, ask: bool) -> Row:
    row = Row("averaging", "horovod", "ok", f"version {metadata.version('horovod')}")
    if not ask:
        return row
    built = built_with()
    told = ", ".join(f"{what}: {'yes' if has else 'no'}" for what, has in built.items())
    row = row._replace(finding=f"{row.finding}, built with {told}")
    if not built["MPI"]:
        return row._replace(
            status="failed",
            remedy="build it with HOROVOD_WITH_MPI=1 (`cmake --workflow --preset cluster`), or"
            ' set topology.gradient_averaging = "torch"',
        )
    if on_gpu and not built["NCCL"]:
        return row._replace(
            status="warning",
            remedy="build it with HOROVOD_GPU_OPERATIONS=NCCL (`cmake --workflow --preset"
            ' cluster`), or set topology.gradient_averaging = "torch"',
        )
    return row


def _network_rows(topology: Topology, facts: Sequence[Facts], who: str) -> list[Row]:
    """Measure messages in groups, named by `who`, and from leader to leader. Collective."""
    rows = []
    measures = [
        (who, f"added up over {who}", allreduce_speed, topology.ranks_per_group),
        ("leaders", "from leader to leader", ring_speed, topology.num_groups),
    ]
    for name, what, measure, members in measures:
        if members == 1:
            continue
        speed = measure(topology)
        status: Status = "ok"
        remedy = ""
        if len({rank.node for rank in facts}) > 1 and speed.gigabytes_per_second < _SLOW:
            status = "warning"
            remedy = (
                "slow for a cluster's network: see that MPI uses it (Open MPI:"
                " OMPI_MCA_pml=ucx; MPICH: FI_PROVIDER), and that ranks do not share CPUs"
            )
        rows.append(Row("network", name, status, f"{what} by MPI: {speed}", remedy))
    return rows


def _task_rows(
    topology: Topology, facts: Sequence[Facts], recipe: Recipe
) -> tuple[list[Row], Needs | None]:
    """Make the task on rank 0, and look for its data on every node. Collective."""
    world = topology.world
    try:
        needs = on_root(world, f"making task {recipe.task}", lambda: needs_of(recipe))
    except EsgdError as error:
        return [failed("task", "task", error)], None
    size = needs.layout.size
    model = Row("task", "task", "ok", f"{recipe.task}: {size:,} values an individual")
    if needs.missing:
        return [model, failed("task", "data", missing_data(needs.missing[0]))], needs
    files = dict.fromkeys(str(data.file) for data in needs.stored)
    there = world.allgather(all(os.path.isfile(file) for file in files))
    without = list(dict.fromkeys(f.host for f, has in zip(facts, there, strict=True) if not has))
    told = f"{', '.join(files)}: on all nodes" if files else "comes with the task"
    data = Row("task", "data", "ok", told)
    if without:
        data = Row(
            *("task", "data", "failed"),
            f"{', '.join(files)}: not on {', '.join(without[:4])}",
            "put prepared data on a file system that all nodes share, and name it in ESGD_DATA",
        )
    return [model, data], needs
