"""What the ranks of one group exchange while they train: one interface, three implementations.

horovod   one Horovod world per group         torch   torch.distributed, NCCL or Gloo
mpi       MPI_Allreduce                       single  no-op twin for groups of one rank
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from esgd_hpc.errors import InputError

if TYPE_CHECKING:
    from mpi4py import MPI  # a group of one does without


class Averaging(Protocol):
    """Collectives over the ranks of one group. Every method is collective over the group."""

    name: str
    rank: int
    size: int

    def expect(self, *, overlaps: bool) -> None:
        """Be told, before the first collective, whether sums will go on beside backward passes.

        The one method that is not collective.
        """

    def broadcast(self, flat: Tensor) -> None:
        """Overwrite `flat` (1-D, contiguous, float32) with that of the group's rank 0."""

    def sum(self, flat: Tensor) -> None:
        """Overwrite `flat` (1-D, contiguous, float32) with its sum over the group.

        The order of the sum depends on the sizes of the vector and of the group alone.
        """

    def start_sum(self, flat: Tensor) -> Callable[[], None]:
        """Begin what `sum` does; return what waits for its end, until which `flat` is left alone.

        Several parts of one vector may be under way. All ranks begin them in the same order, wait
        for them in that order, and start nothing else before they have.
        """

    def sum_metrics(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the sum over the group of small float64 host arrays of equal shape."""

    def close(self) -> None:
        """Leave the group's session; the object is of no use afterwards."""


def resolve(choice: str, device: str) -> str:
    """Return the implementation that "auto" stands for on this rank; other names as they are.

    Horovod where it is installed; without it torch on GPUs and MPI, which needs no more, on CPUs.
    """
    if choice != "auto":
        return choice
    from esgd_hpc.parallel.averaging.horovod import is_installed

    if is_installed():
        return "horovod"
    return "torch" if device == "cuda" else "mpi"


def check_usable(name: str, group: "MPI.Comm") -> None:
    """Raise InputError if this rank cannot start the named implementation. Local."""
    if name == "horovod" and group.size > 1:
        from esgd_hpc.parallel.averaging import horovod

        horovod.check_usable(group)
    elif name == "torch" and group.size > 1:
        from esgd_hpc.parallel.averaging import torch

        torch.check_usable()


def start(name: str, group: "MPI.Comm", device: str) -> Averaging:
    """Start the named implementation over `group`. Collective over `group`, after `check_usable`.

    `device` is "cpu" or "cuda". A group of one rank gets the no-op twin whatever the name.
    """
    if group.size == 1:
        from esgd_hpc.parallel.averaging.single import SingleAveraging

        return SingleAveraging()
    if name == "horovod":
        from esgd_hpc.parallel.averaging.horovod import HorovodAveraging

        return HorovodAveraging(group, device)
    if name == "torch":
        from esgd_hpc.parallel.averaging.torch import TorchAveraging

        return TorchAveraging(group, device)
    if name == "mpi":
        from esgd_hpc.parallel.averaging.mpi import MpiAveraging

        return MpiAveraging(group)
    raise InputError(f'topology.gradient_averaging = "{name}": one of auto, horovod, torch, mpi')
