"""The world of ranks, split into groups: the only place where communicators are made and freed.

    world   all ranks
    group   the ranks that train one individual together, data-parallel; rank 0 of it is its leader
    peers   the ranks that hold the same place in their groups; for leaders: all leaders.
            Weights travel over it. Every rank has one, so that none holds a missing communicator.
    node    the ranks that share memory: they read data once
    control all ranks again: news that one of them was asked to stop, see `interruption`

Groups are consecutive ranks, so that on usual placements a group shares a node.
"""

from typing import cast

from mpi4py import MPI

from esgd_hpc import pulse
from esgd_hpc.errors import InputError


class Topology:
    """The communicators of one run, until `close` frees them.

    Making one is collective over `world`, which stays the caller's.
    """

    def __init__(self, world: MPI.Comm, ranks_per_group: int) -> None:
        check_world_size(world.size, ranks_per_group)
        self.world = world
        self.ranks_per_group = ranks_per_group
        self.num_groups = world.size // ranks_per_group
        self.group_number, place = divmod(world.rank, ranks_per_group)
        with pulse.waiting("waiting for all ranks to form groups"):
            self.group = world.Split(self.group_number, place)
            self.peers = world.Split(place, self.group_number)
            self.control = world.Dup()
            self.node = cast(MPI.Intracomm, world.Split_type(MPI.COMM_TYPE_SHARED, world.rank))

    @property
    def is_leader(self) -> bool:
        """Whether this rank holds the weights of its group's individuals."""
        return self.group.rank == 0

    @property
    def local_rank(self) -> int:
        """Number of this rank on its node."""
        return self.node.rank

    def close(self) -> None:
        """Free the communicators. Collective over `world`."""
        self.node.Free()
        self.control.Free()
        self.peers.Free()
        self.group.Free()


def check_world_size(size: int, ranks_per_group: int) -> None:
    """Raise InputError where so many ranks cannot be split into groups."""
    if size % ranks_per_group:
        lower = size - size % ranks_per_group
        starts = f"{lower} or {lower + ranks_per_group}" if lower else f"{ranks_per_group}"
        raise InputError(
            f"world size {size} is not a multiple of topology.ranks_per_group"
            f" {ranks_per_group}; start {starts} ranks, or set topology.ranks_per_group = 1"
        )
