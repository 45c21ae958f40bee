"""Data that all ranks of a node read from one copy, in MPI shared memory."""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mpi4py import MPI
from torch import Tensor

from esgd_hpc.data.store import Stored, missing_data, read, read_into
from esgd_hpc.parallel.agreement import on_root, together

log = logging.getLogger(__name__)

_SHARED_MEMORY = Path("/dev/shm")
_SPARE = 0.05
"""Share of shared memory that is left for others: MPI itself lives there too."""


class NodeMemory:
    """Reads datasets once per node. Nothing that it read may be used after `close`."""

    def __init__(self, node: MPI.Intracomm) -> None:
        """Take the communicator of a node's ranks; it stays the caller's."""
        self._node = node
        self._windows: list[MPI.Win] = []

    def read(self, stored: Stored) -> Tensor:
        """Return a dataset, not to be written to. Collective over the node.

        The first rank of the node reads it and checks it; the others see the same memory. Where
        shared memory has no room for it, each rank has a copy of its own.
        """
        if stored.shape is None or stored.dtype is None:
            raise missing_data(stored)
        num_bytes = stored.num_bytes
        doing = f"reading {stored.file}"
        if not (num_bytes and on_root(self._node, doing, lambda: _has_room(self._node, stored))):
            return torch.from_numpy(together(self._node, doing, lambda: read(stored)))
        size = num_bytes if self._node.rank == 0 else 0
        window = MPI.Win.Allocate_shared(size, 1, comm=self._node)
        self._windows.append(window)
        memory, _ = window.Shared_query(0)
        array: npt.NDArray[Any] = np.ndarray(stored.shape, stored.dtype, buffer=memory)  # type: ignore[arg-type]
        on_root(self._node, doing, lambda: read_into(stored, array))
        window.Fence()  # what the first rank wrote is seen by all
        return torch.from_numpy(array)

    def close(self) -> None:
        """Give the memory back. Collective over the node."""
        for window in self._windows:
            window.Free()
        self._windows.clear()


def _has_room(node: MPI.Intracomm, stored: Stored) -> bool:
    """Whether the data should be shared, and can be."""
    if node.size == 1:
        return False
    if not _SHARED_MEMORY.is_dir():
        return True
    usage = shutil.disk_usage(_SHARED_MEMORY)
    if usage.free - stored.num_bytes >= _SPARE * usage.total:
        return True
    log.warning(
        "%s: %s needs %d MiB and %s has %d free; each rank of node %s reads a copy of its own."
        " Mount more shared memory (containers: --shm-size)",
        *(stored.file, stored.name, stored.num_bytes >> 20, _SHARED_MEMORY),
        *(usage.free >> 20, os.uname().nodename),
    )
    return False
