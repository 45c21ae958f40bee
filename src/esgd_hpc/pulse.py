"""What this process is at: kept by those who work, read by the watchdog.

A rank is a process, so there is one pulse in a process. Costs a few assignments; nothing is read
from it by what computes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec


class Pulse(msgspec.Struct):
    """The newest sign of life of a process."""

    doing: str = "starting"
    waiting: bool = False
    """Whether it waits for other groups, so that its standing still is none of its fault."""
    untimed: bool = False
    """Whether it runs code of users that may take any time."""
    since: float = 0.0
    """time.monotonic() of the last progress."""


_pulse = Pulse(since=time.monotonic())


def doing(what: str) -> None:
    """Say what begins now. Counts as progress."""
    _pulse.doing, _pulse.since = what, time.monotonic()


_also: list[Callable[[], None]] = []


def progress() -> None:
    """Say that what goes on has come a step further."""
    _pulse.since = time.monotonic()
    for action in _also:
        action()


@contextmanager
def also(action: Callable[[], None]) -> Iterator[None]:
    """Call `action` at each step of progress in the `with` block: what must go on beside it."""
    _also.append(action)
    try:
        yield
    finally:
        _also.pop()


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say that this rank waits for other groups, for as long as the `with` block lasts."""
    before, waited = _pulse.doing, _pulse.waiting
    _pulse.doing, _pulse.waiting, _pulse.since = what, True, time.monotonic()
    try:
        yield
    finally:
        _pulse.doing, _pulse.waiting, _pulse.since = before, waited, time.monotonic()


@contextmanager
def untimed(what: str) -> Iterator[None]:
    """Say that what goes on in the `with` block may take any time."""
    before = _pulse.doing
    _pulse.doing, _pulse.untimed = what, True
    try:
        yield
    finally:
        _pulse.doing, _pulse.untimed, _pulse.since = before, False, time.monotonic()


def now() -> Pulse:
    """Return the pulse as it is."""
    return msgspec.structs.replace(_pulse)
