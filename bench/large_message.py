"""Send one individual above 2^31 bytes from one leader to another, and check every bit of it.

    mpiexec -n 2 python bench/large_message.py

Takes 6.6 GB of memory: the sender's, the receiver's, and what the receiver compares with.
"""

import time

import numpy as np
from mpi4py import MPI

from esgd_hpc.parallel.exchange import Exchange

SIZE = 550_000_000


def main() -> None:
    """Send, compare, and print the seconds and the rate."""
    world = MPI.COMM_WORLD
    if world.size != 2:
        raise SystemExit("bench/large_message.py: start it on 2 ranks: mpiexec -n 2 ...")
    expected = np.arange(SIZE, dtype=np.float32)
    exchange = Exchange(world, SIZE)
    world.Barrier()
    started = time.perf_counter()
    if world.rank == 0:
        exchange.send(expected, 1)
    else:
        exchange.ask(7, 0)
        arrived = exchange.get(7)
    exchange.close()
    seconds = time.perf_counter() - started
    if world.rank == 1:
        same = np.array_equal(arrived.view(np.int32), expected.view(np.int32))
        gigabytes = arrived.nbytes / 1e9
        rate = gigabytes / seconds
        print(f"{gigabytes:.2f} GB in {seconds:.2f} s, {rate:.2f} GB/s, same bits: {same}")
        if not same:
            world.Abort(1)


if __name__ == "__main__":
    main()
