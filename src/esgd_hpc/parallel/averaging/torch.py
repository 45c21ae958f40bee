"""Gradient averaging by torch.distributed: NCCL on GPUs, Gloo on CPUs; one session per group."""

import os
import socket
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from mpi4py import MPI
from torch import Tensor

from esgd_hpc.errors import InputError

TIMEOUT = timedelta(minutes=30)


def check_usable() -> None:
    """Raise InputError if this process has a torch.distributed session already. Local."""
    if dist.is_initialized():
        raise InputError(
            'topology.gradient_averaging = "torch": torch.distributed is already initialized'
            " in this process; end that session first, or choose horovod or mpi"
        )


class TorchAveraging:
    """Collectives of a group over torch.distributed, which MPI introduces to one another."""

    name = "torch"

    def __init__(self, group: MPI.Comm, device: str) -> None:
        self.rank = group.rank
        self.size = group.size
        one_node = len(set(group.allgather(MPI.Get_processor_name()))) == 1
        if one_node and device == "cpu":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        host = "127.0.0.1" if one_node else group.bcast(socket.getfqdn())
        if self.rank == 0:
            store = dist.TCPStore(
                host, 0, self.size, is_master=True, timeout=TIMEOUT, wait_for_workers=False
            )
            group.bcast(store.port)
        else:
            store = dist.TCPStore(host, group.bcast(None), self.size, timeout=TIMEOUT)
        dist.init_process_group(
            "nccl" if device == "cuda" else "gloo",
            store=store,
            rank=self.rank,
            world_size=self.size,
            timeout=TIMEOUT,
        )
        self._device = torch.device(device)

    def expect(self, *, overlaps: bool) -> None:
        """Do nothing: there is nothing to choose."""

    def broadcast(self, flat: Tensor) -> None:
        dist.broadcast(flat, src=0)

    def sum(self, flat: Tensor) -> None:
        dist.all_reduce(flat, op=dist.ReduceOp.SUM)

    def start_sum(self, flat: Tensor) -> Callable[[], None]:
        work = dist.all_reduce(flat, op=dist.ReduceOp.SUM, async_op=True)
        return lambda: work.wait()

    def sum_metrics(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        total = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        result: npt.NDArray[np.float64] = total.cpu().numpy()
        return result

    def close(self) -> None:
        dist.destroy_process_group()
