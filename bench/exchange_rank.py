"""One rank of what bench/exchange.py measures of MPI and of making noise; rank 0 writes a report.

    mpiexec -n N python bench/exchange_rank.py minimum|broadcast|large REPORT [options]

minimum    what any evolution step needs: bytes per second between ranks that all send and receive
           at once, and seconds to generate the noise of all children, spread over the ranks
broadcast  seconds until all ranks have a vector of rank 0: broadcast, and sent to each
large      seconds of one vector above 2^31 bytes from rank 0 to rank 1, and whether its bits arrive
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from mpi4py import MPI

from esgd_hpc import rng
from esgd_hpc.evolution.operators import NOISE_CHUNK
from esgd_hpc.parallel.exchange import Exchange
from esgd_hpc.population import Weights

WORLD = MPI.COMM_WORLD
PIECE = 1 << 24
"""Values that are compared at once."""


def main() -> None:
    """Measure one thing; rank 0 reports it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["minimum", "broadcast", "large"])
    parser.add_argument("report", type=Path)
    parser.add_argument("--parameters", type=int, required=True, help="of one vector")
    parser.add_argument("--children", type=int, default=0, help="of all ranks")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    size, rounds = arguments.parameters, arguments.rounds
    found: dict[str, object]
    if arguments.what == "minimum":
        found = {
            "bandwidth": bandwidth(size, rounds),
            "noise": seconds_until_all(lambda: make_noise(size, arguments.children)),
        }
    elif arguments.what == "broadcast":
        found = times_to_all(size, rounds)
    else:
        found = send_large(size)
    if WORLD.rank == 0:
        arguments.report.write_text(json.dumps(found))


def seconds_until_all(action: Callable[[], None]) -> float:
    """Return the seconds until the last rank is done with something. Collective."""
    WORLD.Barrier()
    started = time.perf_counter()
    action()
    return float(WORLD.allreduce(time.perf_counter() - started, op=MPI.MAX))


def bandwidth(size: int, rounds: int) -> float:
    """Return the bytes per second that arrive at all ranks together, in a ring of vectors."""
    out, into = vector(WORLD.rank, size), np.empty(size, dtype=np.float32)

    def pass_on() -> None:
        requests = [
            WORLD.Irecv(into, (WORLD.rank - 1) % WORLD.size),
            WORLD.Isend(out, (WORLD.rank + 1) % WORLD.size),
        ]
        MPI.Request.Waitall(requests)

    pass_on()
    return WORLD.size * out.nbytes / median(seconds_until_all(pass_on) for _ in range(rounds))


def make_noise(size: int, children: int) -> None:
    """Generate this rank's share of the noise of the children, and do nothing with it."""
    chunk = np.empty(min(NOISE_CHUNK, size), dtype=np.float32)
    for child in range(WORLD.rank, children, WORLD.size):
        stream = rng.stream(1, 1, 1, child, rng.Purpose.MUTATION)
        for start in range(0, size, len(chunk)):
            stream.standard_normal(out=chunk[: size - start], dtype=np.float32)


def times_to_all(size: int, rounds: int) -> dict[str, object]:
    """Return the seconds of each round, broadcast and one by one, in turn."""
    own = vector(0, size) if WORLD.rank == 0 else None
    exchange = Exchange(WORLD, size)

    def broadcast() -> None:
        exchange.broadcast(0, 0, own)
        finish()

    def one_by_one() -> None:
        if own is None:
            exchange.ask(0, 0)
        else:
            for target in range(1, WORLD.size):
                exchange.send(own, target)
        finish()

    def finish() -> None:
        exchange.forget_all()
        exchange.close()

    found: dict[str, list[float]] = {}
    for _ in range(rounds + 1):
        for action in (broadcast, one_by_one):
            found.setdefault(action.__name__, []).append(seconds_until_all(action))
    return {name: seconds[1:] for name, seconds in found.items()}  # the first makes connections


def send_large(size: int) -> dict[str, object]:
    """Return the seconds of one vector from rank 0 to rank 1 and whether all bits arrived."""
    exchange = Exchange(WORLD, size)
    if WORLD.rank == 0:
        own = vector(0, size)

    def send() -> None:
        if WORLD.rank == 0:
            exchange.send(own, 1)
        elif WORLD.rank == 1:
            exchange.ask(0, 0)
            exchange.get(0)
        exchange.close()

    seconds, same = seconds_until_all(send), True
    if WORLD.rank == 1:
        bits = exchange.get(0).view(np.int32)
        for start in range(0, size, PIECE):
            expected = np.arange(start, min(start + PIECE, size), dtype=np.int32)
            same = same and np.array_equal(bits[start : start + PIECE], expected)
    return {"seconds": seconds, "same": WORLD.allreduce(same, op=MPI.LAND)}


def vector(first: int, size: int) -> Weights:
    """Return a vector with other bits in each place: first, first + 1, ... as whole numbers."""
    return np.arange(first, first + size, dtype=np.int32).view(np.float32)


if __name__ == "__main__":
    main()
