"""Which device this rank computes on."""

import os

import torch

from esgd_hpc.config import TopologySettings
from esgd_hpc.errors import InputError


def choose_device(
    settings: TopologySettings, local_rank: int, *, or_cpu: bool = False
) -> torch.device:
    """Return this rank's GPU by its rank on the node, or the CPU, and make it the current one.

    Raises InputError where a GPU is demanded and torch finds none, unless the CPU will do as well.
    """
    available = torch.cuda.is_available()
    if settings.device == "cuda" and not available and not or_cpu:
        raise InputError(
            'topology.device = "cuda": torch finds no GPU on a rank; ask the scheduler for GPUs,'
            ' install a CUDA build of torch, or set topology.device = "cpu"'
        )
    if settings.device == "cpu" or not available:
        return torch.device("cpu")
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """Return what a person calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
