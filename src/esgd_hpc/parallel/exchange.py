"""What travels between groups: weights leader to leader in the order of a plan, and records."""

from collections.abc import Callable, Iterable, MutableMapping

import numpy as np
from mpi4py import MPI

from esgd_hpc import pulse
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import Individual, Transfer, Weights

PIECE = 1 << 28
"""float32 places of one message (1 GiB): MPI counts and some transports end at 2^31 bytes."""


def exchange(
    peers: MPI.Comm,
    transfers: Iterable[Transfer],
    have: Callable[[int], Weights],
    arrived: MutableMapping[int, Weights],
    size: int,
) -> None:
    """Carry out the transfers: send what `have` gives, put what comes into `arrived`, by uid.

    Collective over the leaders, with the same transfers in the same order on each; `size` is the
    length P of every flat vector. What is broadcast needs one vector more on the others.
    """
    # Messages between two ranks keep their order, so one tag is enough.
    requests = []
    broadcasts = []
    for transfer in transfers:
        if transfer.to_all:
            broadcasts.append(transfer)
        elif peers.rank == transfer.source:
            for piece in _pieces(have(transfer.uid)):
                requests += [peers.Isend(piece, target) for target in transfer.targets]
        elif peers.rank in transfer.targets:
            arrived[transfer.uid] = np.empty(size, dtype=np.float32)
            for piece in _pieces(arrived[transfer.uid]):
                requests.append(peers.Irecv(piece, transfer.source))
    with pulse.waiting("exchanging weights with other groups"):
        for transfer in broadcasts:
            own = have(transfer.uid) if peers.rank == transfer.source else None
            vector = send_to_all(peers, own, transfer.source, size)
            if peers.rank in transfer.targets:
                arrived[transfer.uid] = vector
        MPI.Request.Waitall(requests)


def send_to_all(comm: MPI.Comm, vector: Weights | None, source: int, size: int) -> Weights:
    """Return the vector of rank `source` on every rank of `comm`. Collective over `comm`."""
    if vector is None:
        vector = np.empty(size, dtype=np.float32)
    with pulse.waiting("sending weights to all"):
        for piece in _pieces(vector):
            comm.Bcast(piece, root=source)
    return vector


def gather_records(topology: Topology, mine: list[Individual]) -> list[Individual]:
    """Return the records of all ranks in uid order, on every rank. Collective over the world."""
    with pulse.waiting("gathering the records of all groups"):
        parts = topology.world.gather(mine)
        merged = sorted((r for part in parts or [] for r in part), key=lambda r: r.uid)
        result: list[Individual] = topology.world.bcast(merged)
    return result


def _pieces(vector: Weights) -> list[Weights]:
    return [vector[at : at + PIECE] for at in range(0, len(vector), PIECE)]
