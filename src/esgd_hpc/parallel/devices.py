"""The ranks of a node share out its GPUs."""

import os

import torch

from esgd_hpc.config import TopologySettings
from esgd_hpc.device import SeenGpus, choose_device, pick_gpus, visible_gpus
from esgd_hpc.parallel.agreement import together
from esgd_hpc.parallel.topology import Topology


def device_of_rank(settings: TopologySettings, topology: Topology) -> torch.device:
    """Return the device of this rank and make it the current one. Collective over the world.

    Raises InputError on every rank where one finds no GPU that must have one, or where two would
    compute on the same.
    """
    world, node = topology.world, topology.node
    seen = together(world, "looking for GPUs", lambda: visible_gpus(settings))
    on_node = [SeenGpus(*found) for found in node.allgather((world.rank, seen))]

    def choose() -> torch.device:
        places = pick_gpus(os.uname().nodename, on_node, settings.share_gpus)
        return choose_device(settings, places[topology.local_rank])

    return together(world, "choosing a device", choose)
