"""Send one individual above 2^31 bytes from one leader to another, and check every bit of it.

    mpiexec -n 2 python bench/large_message.py

Takes 6.6 GB of memory: the sender's, the receiver's, and what the receiver compares with.
"""

import time

import numpy as np
from mpi4py import MPI

from esgd_hpc.parallel.exchange import exchange
from esgd_hpc.population import Transfer, Weights

SIZE = 550_000_000


def main() -> None:
    """Send, compare, and print the seconds and the rate."""
    world = MPI.COMM_WORLD
    if world.size != 2:
        raise SystemExit("bench/large_message.py: start it on 2 ranks: mpiexec -n 2 ...")
    expected = np.arange(SIZE, dtype=np.float32)
    arrived: dict[int, Weights] = {}
    world.Barrier()
    started = time.perf_counter()
    exchange(world, [Transfer(7, 0, (1,))], lambda _: expected, arrived, SIZE)
    seconds = time.perf_counter() - started
    if world.rank == 1:
        same = np.array_equal(arrived[7].view(np.int32), expected.view(np.int32))
        gigabytes = arrived[7].nbytes / 1e9
        rate = gigabytes / seconds
        print(f"{gigabytes:.2f} GB in {seconds:.2f} s, {rate:.2f} GB/s, same bits: {same}")
        if not same:
            world.Abort(1)


if __name__ == "__main__":
    main()
