"""Gradient averaging by MPI alone. Needs no compiler and no other library.

Sums that go on beside backward passes are MPI_Allreduce in a thread: MPI libraries move little
while nobody is inside them, and MPI_Iallreduce would do most of its work when it is waited for.
"""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

import numpy as np
import numpy.typing as npt
from mpi4py import MPI
from torch import Tensor


class MpiAveraging:
    """Collectives of a group over MPI; tensors on a GPU go through host memory."""

    name = "mpi"

    def __init__(self, group: MPI.Comm) -> None:
        self._group = group
        self._thread: Thread | None = None
        self._begun: SimpleQueue[Tensor | None] = SimpleQueue()
        self._ended: SimpleQueue[Exception | None] = SimpleQueue()
        self.rank = group.rank
        self.size = group.size

    def expect(self, *, overlaps: bool) -> None:
        """Do nothing: there is nothing to choose."""

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

    def start_sum(self, flat: Tensor) -> Callable[[], None]:
        if MPI.Query_thread() < MPI.THREAD_MULTIPLE or flat.device.type != "cpu":
            # From a GPU it would be copied when all that was begun there is done, so afterwards.
            return lambda: self.sum(flat)
        if self._thread is None:
            self._thread = Thread(target=self._sum_all, name="sums", daemon=True)
            self._thread.start()
        self._begun.put(flat)
        return self._wait

    def _sum_all(self) -> None:
        while (flat := self._begun.get()) is not None:
            try:
                self.sum(flat)
            except Exception as error:
                self._ended.put(error)
            else:
                self._ended.put(None)

    def _wait(self) -> None:
        """Wait for the first sum under way: they end in the order in which they began."""
        if (error := self._ended.get()) is not None:
            raise error

    def sum_metrics(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        total = np.empty_like(values)
        self._group.Allreduce(values, total, op=MPI.SUM)
        return total

    def close(self) -> None:
        """End the thread; leave the communicator to the topology, which made it."""
        if self._thread is not None:
            self._begun.put(None)
            self._thread.join()
