"""Ranks agree before they act: an error on one rank becomes the same error on every rank."""

from collections.abc import Callable
from typing import TypeVar

from mpi4py import MPI

from esgd_hpc.errors import EsgdError, RunError

T = TypeVar("T")


def together(comm: MPI.Comm, doing: str, action: Callable[[], T]) -> T:
    """Run `action` on every rank of `comm`; if it fails on any, raise the same error on all.

    Collective over `comm`; `action` itself must not communicate over it. An EsgdError is
    raised again as it is, anything else as a RunError that names the rank and what it was doing.
    """
    result: T | None = None
    failure: EsgdError | None = None
    try:
        result = action()
    except EsgdError as error:
        failure = error
    except Exception as error:
        failure = _told(error, doing, comm.rank)
    failures = [f for f in comm.allgather(failure) if f is not None]
    if failures:
        raise failures[0]
    return result  # type: ignore[return-value]


def on_root(comm: MPI.Comm, doing: str, action: Callable[[], T]) -> T:
    """Run `action` on rank 0 of `comm` and return its result, or raise its error, on every rank.

    Collective over `comm`.
    """
    result: T | None = None
    failure: EsgdError | None = None
    if comm.rank == 0:
        try:
            result = action()
        except EsgdError as error:
            failure = error
        except Exception as error:
            failure = _told(error, doing, 0)
    result, failure = comm.bcast((result, failure))
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]


def _told(error: Exception, doing: str, rank: int) -> RunError:
    told = RunError(f"{doing}: {type(error).__name__}: {error} (rank {rank})")
    told.__cause__ = error
    return told
