"""What the facts of all ranks mean: ranks, CPUs, GPUs, memory and time. Knows no MPI."""

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from esgd_hpc.checkpoint.lock import JOB_VARIABLES
from esgd_hpc.config import Recipe, TopologySettings
from esgd_hpc.device import SeenGpus, pick_gpus
from esgd_hpc.errors import EsgdError
from esgd_hpc.launch import forgotten_launcher, job_end, library_name
from esgd_hpc.plan_text import TRAINING_COPIES, held_individuals, size_text
from esgd_hpc.preflight.facts import Facts
from esgd_hpc.preflight.rows import Row, Status, failed, ranks_text

THREAD_LEVELS = ("SINGLE", "FUNNELED", "SERIALIZED", "MULTIPLE")
LIBRARIES_BYTES = 1 << 29
"""What Python, torch and MPI take in a rank, about."""
_TIGHT = 0.8
"""Share of free memory from which on it is tight."""
_SPARE = 0.05
"""Share of /dev/shm that data leaves to MPI."""
_SHOWN = 4


def by_node(facts: Sequence[Facts]) -> list[list[Facts]]:
    """Return the ranks of each node, in order."""
    nodes: dict[int, list[Facts]] = defaultdict(list)
    for rank in facts:
        nodes[rank.node].append(rank)
    return list(nodes.values())


# Ranks --------------------------------------------------------------------------------------------


def mpi_rows(facts: Sequence[Facts], mpi4py: str, needs_threads: bool) -> list[Row]:
    """Judge the MPI library."""
    names = Counter(library_name(rank.mpi) for rank in facts)
    told = " and ".join(names)
    library = Row("mpi", "library", "ok", f"{told}, mpi4py {mpi4py}")
    if len(names) > 1:
        remedy = "load the same MPI module on all nodes, in the job script"
        library = library._replace(status="failed", remedy=remedy)
    level = min(rank.thread_level for rank in facts)
    threads = Row("mpi", "threads", "ok", f"MPI_THREAD_{THREAD_LEVELS[level]}")
    if level < len(THREAD_LEVELS) - 1:
        threads = threads._replace(
            status="failed" if needs_threads else "warning",
            remedy="Horovod needs MPI_THREAD_MULTIPLE: use an MPI built with it, or set"
            ' topology.gradient_averaging = "mpi" or "torch"',
        )
    return [library, threads]


def world_rows(facts: Sequence[Facts], environment: Mapping[str, str]) -> list[Row]:
    """Judge the number of ranks against the launcher's, and where they are."""
    size = len(facts)
    told = facts[0].launched
    ranks = _count(size, "rank")
    if told is None:
        launcher = Row("ranks", "launcher", "ok", f"{ranks}, started without a launcher")
        if note := forgotten_launcher(size, environment):
            finding, _, remedy = note.partition("; ")
            launcher = Row("ranks", "launcher", "warning", finding, remedy)
    elif told.size == size:
        launcher = Row("ranks", "launcher", "ok", f"{ranks}, and so says {told.launcher}")
    else:
        launcher = Row(
            *("ranks", "launcher", "warning"),
            f"{ranks}, but {told.launcher} says {told.size} ({told.variable})",
            "start esgd by the launcher that belongs to this MPI, once for the whole job",
        )
    nodes = by_node(facts)
    each = f", {_count(len(nodes[0]), 'rank')} each" if len(nodes) > 1 else ""
    places = Row("ranks", "nodes", "ok", _count(len(nodes), "node") + each)
    if len({len(node) for node in nodes}) > 1:
        few, many = min(nodes, key=len), max(nodes, key=len)
        places = Row(
            *("ranks", "nodes", "warning"),
            f"{_count(len(nodes), 'node')} with different numbers of ranks: {len(few)} on"
            f" {few[0].host}, {len(many)} on {many[0].host}",
            "ask for whole nodes with as many ranks each: srun --ntasks-per-node,"
            " mpirun --map-by ppr:N:node, jsrun -r",
        )
    return [launcher, places]


def group_rows(facts: Sequence[Facts], recipe: Recipe) -> list[Row]:
    """Judge the groups of a recipe whose ranks_per_group divides the world."""
    each = recipe.topology.ranks_per_group
    num_groups = len(facts) // each
    told = f"{_count(num_groups, 'group')} of {_count(each, 'rank')}"
    split = Row("groups", "number", "ok", told)
    mu = recipe.num_parents
    least, most = mu // num_groups, -(-mu // num_groups)
    share = f"{_count(mu, 'individual')}: " + (
        f"{least} a group" if least == most else f"{least} or {most} a group"
    )
    work = Row("groups", "work", "ok", share)
    if mu < num_groups:
        work = Row(
            *("groups", "work", "warning"),
            f"{_count(mu, 'individual')} for {_count(num_groups, 'group')}: {num_groups - mu} of"
            " them only help to score children"
            if recipe.method == "esgd"
            else f"{_count(mu, 'individual')} for {num_groups} groups: {num_groups - mu} are idle",
            f"start {mu * each} ranks"
            + (f", set topology.ranks_per_group = {len(facts) // mu}" * (len(facts) // mu > each))
            + ", or raise population.parents",
        )
    homes = [{rank.node for rank in facts[at : at + each]} for at in range(0, len(facts), each)]
    split_up = [number for number, nodes in enumerate(homes) if len(nodes) > 1]
    if split_up and each <= min(len(node) for node in by_node(facts)):
        first = facts[split_up[0] * each : (split_up[0] + 1) * each]
        split = Row(
            *("groups", "number", "warning"),
            f"{told}; {len(split_up)} lie on more than one node: group {split_up[0]} is on"
            f" {' and '.join(dict.fromkeys(rank.host for rank in first))}",
            f"make the ranks of each node a multiple of topology.ranks_per_group = {each}, and"
            " place ranks in blocks (srun --distribution=block)",
        )
    return [split, work]


# CPUs ---------------------------------------------------------------------------------------------


def cpu_rows(facts: Sequence[Facts], threads: int) -> list[Row]:
    """Judge which CPUs the ranks may use; `threads` of them is what each rank needs."""
    fewest = min(facts, key=lambda rank: len(rank.cpus))
    most = max(len(rank.cpus) for rank in facts)
    each = _count(len(fewest.cpus), "CPU") + (f" to {most}" if most > len(fewest.cpus) else "")
    told = f"each rank may use {each}"
    for node in by_node(facts):
        alone: dict[int, int] = {}
        for rank in node:
            if len(rank.cpus) > 1:
                continue
            cpu = rank.cpus[0]
            if cpu in alone:
                return [
                    Row(
                        *("cpu", "binding", "warning"),
                        f"ranks {alone[cpu]} and {rank.rank} on {rank.host} are both bound to CPU"
                        f" {cpu}",
                        "give each task CPUs of its own: export"
                        " SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK, or mpirun --bind-to core with"
                        " at most one rank a core",
                    )
                ]
            alone[cpu] = rank.rank
    if len(fewest.cpus) < threads:
        return [
            Row(
                *("cpu", "binding", "warning"),
                f"{told}, and topology.threads_per_rank = {threads}",
                f"ask for {threads} CPUs a task (srun --cpus-per-task={threads}), or lower"
                " topology.threads_per_rank",
            )
        ]
    for node in by_node(facts):
        there = {cpu for rank in node for cpu in rank.cpus}
        if len(there) < len(node) * threads:
            return [
                Row(
                    *("cpu", "binding", "warning"),
                    f"{node[0].host} has {_count(len(there), 'CPU')} for"
                    f" {_count(len(node), 'rank')} with {_count(threads, 'thread')} each",
                    f"start at most {max(1, len(there) // threads)} ranks a node, or ask for more"
                    " CPUs",
                )
            ]
    return [Row("cpu", "binding", "ok", told)]


# GPUs ---------------------------------------------------------------------------------------------


def gpu_rows(facts: Sequence[Facts], settings: TopologySettings) -> list[Row]:
    """Judge what can be told of GPUs without torch: its build, and what the scheduler shows."""
    with_gpus = [rank for rank in facts if rank.has_gpus]
    build = facts[0].torch_build
    told = Row("gpu", "torch", "ok", str(build))
    if with_gpus and not build.gpus and settings.device != "cpu":
        told = Row(
            *("gpu", "torch", "failed" if settings.device == "cuda" else "warning"),
            f"{build}, but there are GPUs on {with_gpus[0].host}",
            "install a CUDA or ROCm build of torch (pytorch.org names the index), or set"
            ' topology.device = "cpu"',
        )
    if not with_gpus:
        status: Status = "failed" if settings.device == "cuda" else "ok"
        remedy = (
            "ask the scheduler for GPUs (srun --gpus-per-task=1, jsrun -g1), or set"
            ' topology.device = "cpu"'
        )
        none = Row("gpu", "visible", status, "no GPUs", remedy if status == "failed" else "")
        return [told, none]
    rows = [told, Row("gpu", "visible", "ok", _visible_text(facts))]
    without = [rank.rank for rank in facts if not rank.has_gpus]
    if without:
        rows[1] = rows[1]._replace(
            status="failed",
            finding=f"ranks that see no GPU, while others do: {ranks_text(without)}",
            remedy="give every task a GPU: srun --gpus-per-task=1, or --gpus-per-node with"
            " --gpu-bind=none",
        )
    elif with_gpus and not build.gpus:
        rows.append(_binding_by_names(facts, settings))
    return rows


def _binding_by_names(facts: Sequence[Facts], settings: TopologySettings) -> Row:
    """Judge the binding by the number of GPUs that the scheduler names, where torch sees none."""
    nodes = by_node(facts)
    try:
        places = [
            pick_gpus(
                node[0].host,
                [SeenGpus(rank.rank, rank.named_gpus) for rank in node],
                settings.share_gpus,
            )
            for node in nodes
        ]
    except EsgdError as error:
        return failed("gpu", "binding", error)
    for node in nodes:
        for before, rank in itertools.pairwise(node):
            if len(rank.named_gpus) == 1 and before.visible == rank.visible:
                return Row(
                    *("gpu", "binding", "warning"),
                    f"ranks {before.rank} and {rank.rank} on {rank.host} are shown one GPU each of"
                    " the same name: one for both, unless the scheduler hides the others",
                    "give each task a GPU of its own: srun --gpus-per-task=1, jsrun -a1 -g1",
                )
    shown = ", ".join(
        f"rank {rank.rank} takes its {_ordinal(place)}"
        for rank, place in list(zip(nodes[0], places[0], strict=True))[:_SHOWN]
    )
    more = ", ..." if len(facts) > _SHOWN else ""
    return Row("gpu", "binding", "ok", f"of the GPUs that are visible, {shown}{more}")


def _ordinal(place: int) -> str:
    return {0: "first", 1: "second", 2: "third"}.get(place, f"{place + 1}th")


def _visible_text(facts: Sequence[Facts]) -> str:
    """Return what the ranks of the first node are shown."""
    node = by_node(facts)[0]
    same: dict[str, list[int]] = defaultdict(list)
    for rank in node:
        shown = ", ".join(f"{name}={value}" for name, value in rank.visible.items())
        same[shown or "all GPUs of the node"].append(rank.rank)
    told = [
        f"rank{'s' * (len(ranks) > 1)} {ranks_text(ranks)}: {shown}"
        for shown, ranks in list(same.items())[:_SHOWN]
    ]
    return f"{node[0].host}: " + "; ".join(told) + ("; ..." if len(same) > _SHOWN else "")


# Memory -------------------------------------------------------------------------------------------


def memory_rows(
    facts: Sequence[Facts], recipe: Recipe, size: int, data_bytes: int, gpu_bytes: int
) -> list[Row]:
    """Judge the memory of each node, and of the smallest GPU where `gpu_bytes` is not 0.

    `size` is the number of values of one individual, `data_bytes` what prepared data takes.
    What activations take is not known before training, so only too little is told for sure.
    """
    each = recipe.topology.ranks_per_group
    one = 4 * size
    leader = held_individuals(recipe, len(facts) // each) * one
    training = TRAINING_COPIES * one
    rank_bytes = LIBRARIES_BYTES + (0 if gpu_bytes else training)
    worst: tuple[float, int, Facts] | None = None
    for node in by_node(facts):
        leaders = sum(rank.rank % each == 0 for rank in node)
        needed = len(node) * rank_bytes + leaders * leader + data_bytes
        share = needed / max(1, min(rank.free_memory for rank in node))
        if worst is None or share > worst[0]:
            worst = (share, needed, node[0])
    assert worst is not None
    share, needed, where = worst
    free = min(rank.free_memory for rank in facts if rank.node == where.node)
    others = f", others {size_text(rank_bytes)}" if each > 1 else ""
    row = Row(
        *("memory", "node", "ok"),
        f"{where.host} needs about {size_text(needed)}, without activations, of"
        f" {size_text(free)} free; a leader {size_text(leader + rank_bytes)}{others}",
    )
    if share > _TIGHT:
        row = row._replace(
            status="failed" if share > 1 else "warning",
            remedy="ask for more memory (sbatch --mem=0: all of the node), start fewer ranks on"
            " each node or more nodes, or set checkpoint.background = false",
        )
    if not gpu_bytes:
        return [row]
    needed = training + data_bytes
    gpu = Row(
        *("memory", "gpu", "ok"),
        f"training takes about {size_text(needed)}, without activations, of {size_text(gpu_bytes)}",
    )
    if needed > gpu_bytes:
        gpu = gpu._replace(status="failed", remedy="use larger GPUs, or a smaller model or data")
    return [row, gpu]


def shared_memory_rows(facts: Sequence[Facts], data_bytes: int) -> list[Row]:
    """Judge whether /dev/shm has room for the data that the ranks of a node share."""
    least = min((node[0] for node in by_node(facts)), key=lambda rank: rank.shared_memory)
    free, total = least.shared_memory
    told = f"{size_text(free)} free in /dev/shm"
    if free - data_bytes >= _SPARE * total:
        data = f" for {size_text(data_bytes)} of data" if data_bytes else ""
        return [Row("memory", "shared", "ok", told + data)]
    return [
        Row(
            *("memory", "shared", "warning"),
            f"{least.host} has {told}, the data takes {size_text(data_bytes)}: each rank will read"
            " a copy of its own",
            "mount more shared memory (containers: --shm-size), or start fewer ranks a node",
        )
    ]


# Time ---------------------------------------------------------------------------------------------


def job_rows(environment: Mapping[str, str], time_limit: float) -> list[Row]:
    """Judge whether the end of the job is known; `time_limit` is the recipe's, in minutes."""
    name = next((name for name in JOB_VARIABLES if name in environment), "")
    end = job_end(environment)
    told = f"job {environment[name]}" if name else "no scheduler's job"
    if time_limit:
        return [Row("job", "time", "ok", f"{told}; run.time_limit = {time_limit:g} minutes")]
    if end is not None:
        minutes = (end - time.time()) / 60
        if minutes > 0:
            return [Row("job", "time", "ok", f"{told}; it ends in {minutes:.0f} minutes")]
        return [
            Row(
                *("job", "time", "failed"),
                f"{told}; its end is {-minutes:.0f} minutes ago",
                "set ESGD_END_TIME in the job script to this job's end, or leave it out",
            )
        ]
    if not name:
        return [Row("job", "time", "ok", f"{told}, no time limit")]
    return [
        Row(
            *("job", "time", "warning"),
            f"{told}; its end is not known, so a run cannot stop in time by itself",
            "set run.time_limit (minutes), or ESGD_END_TIME (seconds since 1970), as the job"
            " scripts that come with esgd do",
        )
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
