"""How fast messages travel, and whether a group can average: measured for `esgd check`."""

import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from mpi4py import MPI

from esgd_hpc.errors import RunError
from esgd_hpc.parallel.agreement import closed_together, first_told, together
from esgd_hpc.parallel.topology import Topology

if TYPE_CHECKING:
    import torch

LARGE_BYTES = 1 << 22
_LARGE_TIMES, _SMALL_TIMES = 9, 31


class Speed(NamedTuple):
    """Median times of the slowest place."""

    large: float
    """Seconds of a message of `LARGE_BYTES`."""
    small: float
    """Seconds of a message of one number."""

    @property
    def gigabytes_per_second(self) -> float:
        return LARGE_BYTES / self.large / 1e9

    def __str__(self) -> str:
        return (
            f"{self.gigabytes_per_second:.2g} GB/s ({LARGE_BYTES >> 20} MiB in"
            f" {self.large * 1e3:,.1f} ms), a small message {self.small * 1e6:,.1f} us"
        )


def thread_level() -> int:
    """Return the thread level that MPI gives: 3 is MPI_THREAD_MULTIPLE."""
    return MPI.Query_thread()


def allreduce_speed(topology: Topology) -> Speed:
    """Return how fast the slowest group adds up numbers by MPI. Collective over the world."""

    def add(comm: MPI.Comm, places: int) -> Callable[[], None]:
        numbers = np.ones(places, dtype=np.float32)
        return lambda: comm.Allreduce(MPI.IN_PLACE, numbers, op=MPI.MAX)

    return _slowest(topology.world, _measured(topology.group, add))


def ring_speed(topology: Topology) -> Speed:
    """Return how fast leaders pass vectors on in a ring, at the same time. Collective."""

    def shift(comm: MPI.Comm, places: int) -> Callable[[], None]:
        out, into = np.ones(places, dtype=np.float32), np.empty(places, dtype=np.float32)
        after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
        return lambda: comm.Sendrecv(out, after, recvbuf=into, source=before)

    idle = Speed(0.0, 0.0)
    mine = _measured(topology.peers, shift) if topology.is_leader else idle
    return _slowest(topology.world, mine)


def averaging_speed(name: str, topology: Topology, device: "torch.device") -> Speed:
    """Return how fast the slowest group adds up a tensor as training does. Collective.

    Starts the named averaging and checks its sums; whatever is wrong with it is raised on all.
    """
    import torch

    from esgd_hpc.parallel import averaging

    world = topology.world
    doing = f"starting gradient averaging by {name}"
    together(world, doing, lambda: averaging.check_usable(name, topology.group))
    started = together(world, doing, lambda: averaging.start(name, topology.group, device.type))
    wrong: list[str] = []
    with closed_together(started) as group:

        def add(comm: MPI.Comm, places: int) -> Callable[[], None]:
            numbers = torch.full((places,), float(comm.rank), device=device)
            group.sum(numbers)
            expected = comm.size * (comm.size - 1) / 2
            if float(numbers.min()) != expected or float(numbers.max()) != expected:
                wrong.append(f"a sum over the group is {float(numbers[0])}, not {expected}")
            numbers.zero_()

            def once() -> None:
                group.sum(numbers)
                if device.type == "cuda":
                    torch.cuda.synchronize()

            return once

        speed = together(world, doing, lambda: _measured(topology.group, add))
    if told := first_told(world, "".join(wrong[:1])):
        raise RunError(f"gradient averaging by {name}: {told}; choose another averaging")
    return _slowest(world, speed)


def built_with() -> dict[str, bool]:
    """Return what Horovod was built with. Imports it, and torch, without starting it."""
    import horovod.torch as hvd

    return {"MPI": bool(hvd.mpi_built()), "NCCL": bool(hvd.nccl_built())}


def nccl_version() -> str:
    """Return the version of the NCCL (RCCL) that torch has, "" for none."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_nccl_available()):
        return ""
    return ".".join(map(str, torch.cuda.nccl.version()))


def _measured(comm: MPI.Comm, prepare: Callable[[MPI.Comm, int], Callable[[], None]]) -> Speed:
    medians = []
    for places, times in ((LARGE_BYTES // 4, _LARGE_TIMES), (1, _SMALL_TIMES)):
        once = prepare(comm, places)
        once()
        seconds = []
        for _ in range(times):
            comm.Barrier()
            begin = time.perf_counter()
            once()
            seconds.append(time.perf_counter() - begin)
        medians.append(statistics.median(seconds))
    return Speed(*medians)


def _slowest(world: MPI.Comm, mine: Speed) -> Speed:
    return Speed(*(world.allreduce(seconds, op=MPI.MAX) for seconds in mine))
