"""Gradient averaging by MPI alone: one flat Allreduce. Needs no compiler and no other library."""

import numpy as np
import numpy.typing as npt
from mpi4py import MPI
from torch import Tensor


class MpiAveraging:
    """Collectives of a group over MPI; tensors on a GPU go through host memory."""

    name = "mpi"

    def __init__(self, group: MPI.Comm) -> None:
        self._group = group
        self.rank = group.rank
        self.size = group.size

    def broadcast(self, flat: Tensor) -> None:
        host = flat.detach().cpu()
        self._group.Bcast(host.numpy(), root=0)
        if host.data_ptr() != flat.data_ptr():
            flat.copy_(host)

    def sum(self, flat: Tensor) -> None:
        host = flat.detach().cpu()
        self._group.Allreduce(MPI.IN_PLACE, host.numpy(), op=MPI.SUM)
        if host.data_ptr() != flat.data_ptr():
            flat.copy_(host)

    def sum_metrics(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        total = np.empty_like(values)
        self._group.Allreduce(values, total, op=MPI.SUM)
        return total

    def close(self) -> None:
        """Leave the communicator to the topology, which made it."""
