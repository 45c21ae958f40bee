"""Ranks agree before they act: an error on one rank becomes the same error on every rank."""

import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from mpi4py import MPI

from esgd_hpc import pulse
from esgd_hpc.errors import EsgdError, RunError

log = logging.getLogger(__name__)

T = TypeVar("T")


def together(comm: MPI.Comm, doing: str, action: Callable[[], T]) -> T:
    """Run `action` on every rank of `comm`; if it fails on any, raise the same error on all.

    Collective over `comm`; `action` itself must not communicate over it. An EsgdError is
    raised again as it is, anything else as a RunError that names the rank and what it was doing.
    """
    result: T | None = None
    failure: EsgdError | None = None
    pulse.doing(doing)
    try:
        result = action()
    except EsgdError as error:
        failure = error
    except Exception as error:
        failure = _told(error, doing, comm.rank)
    with pulse.waiting(f"{doing}, done, and the others are not"):
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
        pulse.doing(doing)
        try:
            result = action()
        except EsgdError as error:
            failure = error
        except Exception as error:
            failure = _told(error, doing, 0)
    with pulse.waiting(f"{doing}, which is up to another rank"):
        result, failure = comm.bcast((result, failure))
    if failure is not None:
        raise failure
    return result


def from_root(comm: MPI.Comm, doing: str, action: Callable[[], Sequence[T]]) -> T:
    """Run `action`, which gives one result a rank, on rank 0 and return each rank its own.

    Collective over `comm`; its error is raised on every rank.
    """
    results: list[tuple[T | None, EsgdError | None]] = []
    if comm.rank == 0:
        pulse.doing(doing)
        try:
            results = [(result, None) for result in action()]
        except EsgdError as error:
            results = [(None, error)] * comm.size
        except Exception as error:
            results = [(None, _told(error, doing, 0))] * comm.size
    with pulse.waiting(f"{doing}, which is up to another rank"):
        mine: tuple[T, EsgdError | None] = comm.scatter(results)
    result, failure = mine
    if failure is not None:
        raise failure
    return result


class Closable(Protocol):
    """Something that ranks close together."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


@contextmanager
def closed_together(thing: C) -> Iterator[C]:
    """Close the thing at the end, also after an EsgdError, which every rank raises.

    After any other exception it stays open: closing is collective and the other ranks would
    not come, so this rank must go on to abort the world.
    """
    try:
        yield thing
    except EsgdError:
        thing.close()
        raise
    thing.close()


def first_told(comm: MPI.Comm, text: str) -> str:
    """Return the text of the first rank that has one, on every rank. Collective over `comm`."""
    with pulse.waiting("hearing what others tell"):
        return next((told for told in comm.allgather(text) if told), "")


def _told(error: Exception, doing: str, rank: int) -> RunError:
    log.debug("%s", "".join(traceback.format_exception(error)).rstrip())
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{last.filename}:{last.lineno}, rank {rank}"
    return RunError(f"{doing}: {type(error).__name__}: {error} ({place})")
