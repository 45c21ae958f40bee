"""What travels between groups: weights, beside what else leaders do, and records.

Messages between two leaders keep their order, so that one tag is enough: a leader must ask for
vectors of another in the order in which that one sends them.
"""

from typing import TypeVar

import numpy as np
from mpi4py import MPI

from esgd_hpc import pulse
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import Individual, Weights

PIECE = 1 << 28
"""float32 places of one message (1 GiB): MPI counts and some transports end at 2^31 bytes."""

T = TypeVar("T")


class Exchange:
    """Vectors of shape [P] that a leader sends and receives, until `close`.

    Nothing waits but `get`, `forget` and `close`. Most MPI libraries move large messages only while
    they are called, so who computes for long calls `poll` now and then.
    """

    def __init__(self, peers: MPI.Comm, size: int) -> None:
        """Take the communicator of the leaders, which stays the caller's, and P."""
        self._peers, self._size = peers, size
        self._here: dict[int, Weights] = {}
        """What was asked for, by uid; still on its way where there are requests for it."""
        self._coming: dict[int, list[MPI.Request]] = {}
        self._leaving: list[MPI.Request] = []

    def send(self, vector: Weights, target: int) -> None:
        """Begin to send a vector, which must not change until it has left."""
        self._leaving += [self._peers.Isend(piece, target) for piece in _pieces(vector)]

    def ask(self, uid: int, source: int) -> None:
        """Begin to receive the vector that `source` sends next, under `uid`."""
        vector = self._here[uid] = np.empty(self._size, dtype=np.float32)
        self._coming[uid] = [self._peers.Irecv(piece, source) for piece in _pieces(vector)]

    def broadcast(self, uid: int, source: int, own: Weights | None) -> None:
        """Begin to broadcast a vector, given on `source` alone; the others receive it under `uid`.

        Collective over the leaders, which call it in the same order.
        """
        vector = np.empty(self._size, dtype=np.float32) if own is None else own
        requests = [self._peers.Ibcast(piece, root=source) for piece in _pieces(vector)]
        if own is None:
            self._here[uid], self._coming[uid] = vector, requests
        else:
            self._leaving += requests

    def get(self, uid: int) -> Weights:
        """Return what was asked for or broadcast, once it is here; it stays until forgotten."""
        requests = self._coming.pop(uid, None)
        if requests:
            with pulse.waiting("waiting for weights of other groups"):
                MPI.Request.Waitall(requests)
        return self._here[uid]

    def forget(self, uid: int) -> None:
        """Let go of what was received."""
        self.get(uid)
        del self._here[uid]

    def forget_all(self) -> None:
        """Let go of all that was received."""
        for uid in list(self._here):
            self.forget(uid)

    def poll(self) -> None:
        """Let messages move on, and let go of what has left."""
        done = MPI.Request.Testsome(self._leaving) if self._leaving else None
        if done:
            self._leaving = [r for r in self._leaving if r != MPI.REQUEST_NULL]
        elif self._coming:
            self._peers.Iprobe()

    def close(self) -> None:
        """Wait until all that this leader sends has left."""
        with pulse.waiting("waiting for other groups to take weights"):
            MPI.Request.Waitall(self._leaving)
        self._leaving = []


def send_to_all(comm: MPI.Comm, vector: Weights | None, source: int, size: int) -> Weights:
    """Return the vector of rank `source` on every rank of `comm`. Collective over `comm`."""
    if vector is None:
        vector = np.empty(size, dtype=np.float32)
    with pulse.waiting("sending weights to all"):
        for piece in _pieces(vector):
            comm.Bcast(piece, root=source)
    return vector


def gather_records(topology: Topology, mine: list[Individual]) -> list[Individual]:
    """Return the records of all leaders in uid order, on every rank. Collective over the world."""
    merged = gather_on_root(topology, mine)
    with pulse.waiting("hearing the records of all groups"):
        result: list[Individual] = topology.world.bcast(merged)
    return result


def gather_on_root(topology: Topology, mine: list[Individual]) -> list[Individual]:
    """Return the records of all leaders in uid order on rank 0, none on the others. Collective."""
    if not topology.is_leader:
        return []
    with pulse.waiting("gathering the records of all groups"):
        parts = topology.peers.gather(mine)
    return sorted((r for part in parts or [] for r in part), key=lambda r: r.uid)


def _pieces(vector: Weights) -> list[Weights]:
    return [vector[at : at + PIECE] for at in range(0, len(vector), PIECE)]
