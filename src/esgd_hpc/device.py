"""Which device this rank computes on. Imports torch where it is asked about GPUs, not before."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from esgd_hpc.config import TopologySettings
from esgd_hpc.errors import InputError

if TYPE_CHECKING:
    import torch

VISIBLE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
"""Where schedulers say which GPUs a process may use."""

UNKNOWN = ""
"""What stands for a GPU that cannot be told from others."""


class SeenGpus(NamedTuple):
    """The GPUs that one rank sees, in torch's order."""

    rank: int
    """In the world."""
    gpus: tuple[str, ...]
    """What tells each from all other GPUs of the node, or UNKNOWN."""


def visible_gpus(settings: TopologySettings, *, or_cpu: bool = False) -> tuple[str, ...]:
    """Return what tells each GPU that this rank may use from others; nothing for the CPU. Local.

    Raises InputError where a GPU is demanded and torch finds none, unless the CPU will do as well.
    """
    import torch

    if settings.device == "cpu":
        return ()
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        named = os.environ.get(VISIBLE_VARIABLES[0], "").split(",")
        # The parts of a GPU (MIG) may have the UUID of the whole; a process sees one of them.
        if count == 1 and named[0].startswith("MIG-"):
            return (named[0],)
        found = [torch.cuda.get_device_properties(place) for place in range(count)]
        names = tuple(str(getattr(properties, "uuid", UNKNOWN)) for properties in found)
        return names if len(set(names)) == count else (UNKNOWN,) * count  # a driver without UUIDs
    if settings.device == "cuda" and not or_cpu:
        raise InputError(
            'topology.device = "cuda": torch finds no GPU on a rank; ask the scheduler for GPUs,'
            ' install a CUDA build of torch, or set topology.device = "cpu"'
        )
    return ()


def pick_gpus(node: str, seen: Sequence[SeenGpus], share: bool) -> list[int]:
    """Return the place of each rank's GPU among those that it sees; 0 where it sees none.

    `seen` has the ranks of one node in order. Ranks that see the same GPUs take them in turn, so
    that it is right for one GPU a task, for all GPUs in every task, and for a few by socket. Raises
    InputError where two ranks would compute on one GPU, unless they may `share` it.
    """
    visible = [_told_apart(place, rank.gpus) for place, rank in enumerate(seen)]
    picked: list[int] = []
    taken: dict[str, int] = {}
    for place, gpus in enumerate(visible):
        turn = visible[:place].count(gpus)
        if not gpus:
            picked.append(0)
            continue
        picked.append(turn % len(gpus))
        gpu = gpus[picked[-1]]
        if gpu in taken and not share:
            total = len({gpu for gpus in visible for gpu in gpus})
            ranks = f"{len(seen)} ranks see {total} GPU{'s' if total > 1 else ''}"
            raise InputError(
                f"node {node}: {ranks}, and ranks {seen[taken[gpu]].rank} and {seen[place].rank}"
                f" would both compute on GPU {gpu}; start {total} a node (srun"
                f" --ntasks-per-node={total}, mpirun --map-by ppr:{total}:node), give each task a"
                " GPU of its own (srun --gpus-per-task=1), or set topology.share_gpus = true"
            )
        taken.setdefault(gpu, place)
    return picked


def _told_apart(place: int, gpus: tuple[str, ...]) -> tuple[str, ...]:
    """Return names for GPUs that have none: one alone is taken for the rank's own."""
    if UNKNOWN not in gpus:
        return gpus
    return (f"of rank {place}",) if len(gpus) == 1 else tuple(map(str, range(len(gpus))))


def choose_device(
    settings: TopologySettings, place: int, *, or_cpu: bool = False
) -> "torch.device":
    """Return the GPU at this place of those that are visible, or the CPU, and make it current.

    Raises InputError where a GPU is demanded and torch finds none, unless the CPU will do as well.
    """
    import torch

    if not visible_gpus(settings, or_cpu=or_cpu):
        return torch.device("cpu")
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    device = torch.device("cuda", place)
    torch.cuda.set_device(device)
    return device


def device_bytes(device: "torch.device") -> int:
    """Return the memory of a GPU; 0 for the CPU."""
    import torch

    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).total_memory)


def device_name(device: "torch.device") -> str:
    """Return what a person calls the device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
