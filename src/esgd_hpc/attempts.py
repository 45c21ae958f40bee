"""Whether a job that starts itself again gets anywhere, which its script would not see."""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from esgd_hpc.checkpoint.files import write_whole
from esgd_hpc.errors import RunError

NAME = "attempts.json"
JOB_VARIABLE = "ESGD_JOB"
"""Set by job scripts that start again by themselves: the scheduler's number of the job."""
MOST = 2
"""Starts of one job from the same state; the next one is refused."""


class Attempts(msgspec.Struct):
    """What attempts.json holds: the starts of one job, oldest first."""

    job: str
    states: list[str]
    """How far the run had come at each."""


def count_attempt(folder: Path, state: str, environment: Mapping[str, str] = os.environ) -> None:
    """Note that a job starts from a state of the run. On rank 0.

    Raises RunError where its last starts were from this very state: it would start for ever.
    """
    job = environment.get(JOB_VARIABLE, "")
    if not job:
        return
    path = folder / NAME
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Attempts)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        found = Attempts(job, [])
    states = found.states if found.job == job else []
    if states[-MOST:] == [state] * MOST:
        raise RunError(
            f"job {job} has started {MOST} times from {state} in {folder} and got no further, so it"
            " stops here: give it more time, make the recipe's pieces shorter (sgd.epochs,"
            " population.offspring), or look at why it ended; a job started anew goes on"
        )
    write_whole(path, msgspec.json.encode(Attempts(job, [*states[1 - MOST :], state])))
