"""Gradient averaging by Horovod: one independent Horovod world per group.

One flat buffer is one message, and tensor fusion is off: with fusion, three or more ranks could
sum in another order from run to run. Horovod wakes every cycle time; its default of 1 ms costs
more than a small message takes, so it is shortened unless the user has set it.
"""

import importlib.util
import os

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


_members: list[int] = []
"""World ranks of this process's Horovod session, empty before the first."""


class HorovodAveraging:
    """Collectives of a group over Horovod.

    A process has one Horovod session for its whole life: Horovod 0.28.1 crashes when it is
    initialized again after a shutdown. The first one stays and serves later groups of equal ranks.
    """

    name = "horovod"

    def __init__(self, group: MPI.Comm) -> None:
        members = _world_ranks(group)
        os.environ["HOROVOD_FUSION_THRESHOLD"] = "0"
        os.environ.setdefault("HOROVOD_CYCLE_TIME", "0.1")
        import horovod.torch as hvd

        if not _members:
            hvd.init(comm=group)
            _members.extend(members)
        self._hvd = hvd
        self.rank = group.rank
        self.size = group.size

    def broadcast(self, flat: Tensor) -> None:
        self._hvd.broadcast_(flat, root_rank=0, name="weights")

    def sum(self, flat: Tensor) -> None:
        self._hvd.allreduce_(flat, op=self._hvd.Sum, name=f"sum.{flat.numel()}")

    def sum_metrics(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        total = self._hvd.allreduce(
            torch.from_numpy(values), op=self._hvd.Sum, name=f"metrics.{values.size}"
        )
        result: npt.NDArray[np.float64] = total.numpy()
        return result

    def close(self) -> None:
        """Leave the session to the process, see the class."""


def _world_ranks(group: MPI.Comm) -> list[int]:
    places = list(range(group.size))
    return group.Get_group().Translate_ranks(places, MPI.COMM_WORLD.Get_group())
