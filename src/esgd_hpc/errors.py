"""The errors a user can meet, and the exit status of each.

Every `EsgdError` is raised on all ranks of the run together (see `parallel.agreement`), so that a
program can catch it, and the command line can print it once, without a rank being left behind.
Anything else that escapes is a defect or a broken machine and aborts the world.
"""

import sys


class EsgdError(Exception):
    """Base of the errors that every rank raises together."""

    exit_status = 1


class InputError(EsgdError, ValueError):
    """Bad input: a recipe, a command line, a file. Names the key or file, its value, the remedy."""

    exit_status = 2


class RunError(EsgdError, RuntimeError):
    """The run cannot go on: no space left, every individual failed, a broken promise."""

    exit_status = 1


class StoppedEarly(EsgdError):
    """The run stopped at a complete checkpoint because it was asked to; start it again to go on."""

    exit_status = 99


def print_error(error: EsgdError, rank: int | None) -> None:
    """Print the message once over all ranks: on rank 0, or where there is no launcher."""
    if not rank:
        kind = "" if isinstance(error, StoppedEarly) else "error: "
        print(f"esgd: {kind}{error}", file=sys.stderr, flush=True)
