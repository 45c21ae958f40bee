"""Fail unless the ranks of this job find each other: through mpi4py, and through Horovod if asked.

Usage: mpiexec -n 2 python check_ranks.py [--horovod]
"""

import sys


def main() -> int:
    """Return the exit status."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    world = MPI.COMM_WORLD
    library = MPI.Get_library_version().splitlines()[0].rstrip("\0 ")
    if world.size < 2:
        print(f"started alone; mpi4py uses {library}", file=sys.stderr)
        return 1
    if "--horovod" in sys.argv[1:]:
        import horovod.torch as hvd
        import torch

        hvd.init(comm=world)
        total = hvd.allreduce(torch.ones(1), op=hvd.Sum, name="check").item()
        hvd.shutdown()
        if total != world.size:
            print(f"Horovod's sum over {world.size} ranks is {total}", file=sys.stderr)
            return 1
    if world.rank == 0:
        print(f"{world.size} ranks, {library}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
