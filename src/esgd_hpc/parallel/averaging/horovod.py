"""Gradient averaging by Horovod: one independent Horovod world per group.

One flat buffer is one message, and tensor fusion is off: with fusion, three or more ranks could
sum in another order from run to run. Horovod's thread wakes every cycle time to look for messages,
see `cycle_time`.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mpi4py import MPI
from torch import Tensor

from esgd_hpc.errors import InputError


def is_installed() -> bool:
    """Tell whether Horovod can be imported here, without importing it."""
    return importlib.util.find_spec("horovod") is not None


def check_usable(group: MPI.Comm) -> None:
    """Raise InputError if this rank cannot start Horovod over `group`. Local."""
    if not is_installed():
        raise InputError(
            'topology.gradient_averaging = "horovod": Horovod is not installed here; build it'
            " with `cmake --workflow --preset cluster`, or choose torch or mpi"
        )
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise InputError(
            'topology.gradient_averaging = "horovod" needs MPI_THREAD_MULTIPLE, this MPI gives'
            f" level {MPI.Query_thread()} of {MPI.THREAD_MULTIPLE}; use an MPI library built"
            " with it, or choose torch or mpi"
        )
    members = _world_ranks(group)
    if _members and _members != members:
        raise InputError(
            'topology.gradient_averaging = "horovod": this process already trains with ranks'
            f" {_members} of MPI_COMM_WORLD and cannot with {members}: Horovod allows one"
            " session per process; use the same group again, or choose torch or mpi"
        )


def cycle_time(device: str, overlaps: bool) -> str:
    """Return how often Horovod shall look for messages, in ms, where the user has not said it.

    Its own 1 ms is more than a small message takes, but looking ten times as often takes 5 % more
    of a core (bench/averaging.py): too much beside backward passes on CPUs, in which sums of large
    networks hide. Beside a GPU cores are idle.
    """
    return "1" if overlaps and device == "cpu" else "0.1"


_members: list[int] = []
"""World ranks of this process's Horovod session, empty before the first."""


class HorovodAveraging:
    """Collectives of a group over Horovod.

    A process has one Horovod session for its whole life: Horovod 0.28.1 crashes when it is
    initialized again after a shutdown. The first one stays and serves later groups of equal ranks.
    """

    name = "horovod"

    def __init__(self, group: MPI.Comm, device: str) -> None:
        import horovod.torch as hvd

        self._hvd = hvd
        self._group = group
        self._device = device
        self._overlaps = False
        self.rank = group.rank
        self.size = group.size

    def expect(self, *, overlaps: bool) -> None:
        self._overlaps = overlaps

    def _started(self) -> Any:
        """Return Horovod with a session, which begins with the first collective."""
        if not _members:
            os.environ["HOROVOD_FUSION_THRESHOLD"] = "0"
            os.environ.setdefault("HOROVOD_CYCLE_TIME", cycle_time(self._device, self._overlaps))
            self._hvd.init(comm=self._group)
            _members.extend(_world_ranks(self._group))
        return self._hvd

    def broadcast(self, flat: Tensor) -> None:
        self._started().broadcast_(flat, root_rank=0, name="weights")

    def sum(self, flat: Tensor) -> None:
        self.start_sum(flat)()

    def start_sum(self, flat: Tensor) -> Callable[[], None]:
        hvd = self._started()
        # Horovod tells what is under way apart by name, so a part is named by where it lies.
        name = f"sum.{flat.storage_offset()}.{flat.numel()}"
        handle = hvd.allreduce_async_(flat, op=hvd.Sum, name=name)
        return lambda: hvd.synchronize(handle)

    def sum_metrics(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        hvd = self._started()
        total = hvd.allreduce(torch.from_numpy(values), op=hvd.Sum, name=f"metrics.{values.size}")
        result: npt.NDArray[np.float64] = total.numpy()
        return result

    def close(self) -> None:
        """Leave the session to the process, see the class."""


def _world_ranks(group: MPI.Comm) -> list[int]:
    places = list(range(group.size))
    return group.Get_group().Translate_ranks(places, MPI.COMM_WORLD.Get_group())
