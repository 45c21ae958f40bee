"""What the options of a built-in task may hold."""

from collections.abc import Sequence
from typing import Any

from esgd_hpc.errors import InputError


def check_whole_number(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise InputError unless the value is a whole number in [low, high]."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        limit = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise InputError(f"task_options.{name} = {value!r}: expected a whole number {limit}")


def check_fraction(name: str, value: Any) -> None:
    """Raise InputError unless the value is a number above 0 and below 1."""
    if not isinstance(value, float) or not 0.0 < value < 1.0:
        raise InputError(f"task_options.{name} = {value!r}: expected a number above 0 and below 1")


def check_one_of(name: str, value: Any, allowed: Sequence[str | bool]) -> None:
    """Raise InputError unless the value is one of those allowed."""
    if value not in allowed:
        shown = ", ".join(str(a).lower() if isinstance(a, bool) else f'"{a}"' for a in allowed)
        raise InputError(f"task_options.{name} = {value!r}: expected one of {shown}")
