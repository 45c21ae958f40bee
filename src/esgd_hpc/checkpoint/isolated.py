"""What a file holds whose bytes nobody vouches for: told by a child process that opens it.

HDF5 trusts what it reads. A damaged or hostile file can crash it, send it round in circles or make
it ask for any amount of memory, so such a file is opened in a child process only:

    parent                                    child: python -m esgd_hpc.checkpoint.isolated
    {kind, path, seconds, memory}  ────────►  sets a timer that kills it, and a limit of memory
    one line of JSON               ◄────────  opens the file and answers

The kernel keeps the timer and the limit, so that they also hold in the middle of HDF5, and when the
parent was killed. The child answers one file after another, but a file with a problem costs the
child, which it may have left in any state: the next file gets a new one.
"""

import json
import os
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar

import msgspec

from esgd_hpc.checkpoint.facts import (
    HistoryFacts,
    PopulationFacts,
    WeightsFacts,
    history_facts,
    population_facts,
    weights_facts,
)
from esgd_hpc.errors import InputError, RunError

Kind = Literal["population", "weights", "history"]
Facts = TypeVar("Facts", PopulationFacts, WeightsFacts, HistoryFacts)

_MIB = 2**20
_MAX_ANSWER_BYTES = 64 * _MIB
_READY = b"ready\n"
_COMMAND = [sys.executable, "-P", "-m", "esgd_hpc.checkpoint.isolated"]
"""With -P nothing is imported from the working directory, which may be the run's folder."""


class Allowance(NamedTuple):
    """What reading one file may cost."""

    seconds: float
    memory: int
    """Bytes of data, those of Python and its libraries included."""


def allowance(kind: Kind, size: int) -> Allowance:
    """Return what reading a file of `size` bytes may cost, a multiple of what it does cost.

    A minute and 1 GiB for each file. Weights, which are read in pieces: a second more for each
    8 MiB. Records and history, which become Python objects: a second and 20 MiB more for each MiB.
    """
    if kind == "weights":
        return Allowance(60.0 + size / (8 * _MIB), 1024 * _MIB)
    return Allowance(60.0 + size / _MIB, 1024 * _MIB + 20 * size)


class _Request(msgspec.Struct, frozen=True):
    kind: Kind
    path: str
    seconds: float
    memory: int


# Parent -------------------------------------------------------------------------------------------


class Reader:
    """Asks child processes what HDF5 files hold; they end with the `with` block.

    Whatever becomes of a child, the methods return what the file says, or raise InputError that
    names the file and says what is wrong. They raise RunError where no child can be started.
    """

    opens_damaged = True

    def __init__(self, allow: Callable[[Kind, int], Allowance] = allowance) -> None:
        self._allow = allow
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def population(self, path: Path) -> PopulationFacts:
        """Return what a population.h5 says."""
        return self._ask("population", path, PopulationFacts)

    def weights(self, path: Path) -> WeightsFacts:
        """Return what a file of weights says, and which of its rows are damaged."""
        return self._ask("weights", path, WeightsFacts)

    def history(self, path: Path) -> HistoryFacts:
        """Return what a history.h5 says."""
        return self._ask("history", path, HistoryFacts)

    def _ask(self, kind: Kind, path: Path, facts: type[Facts]) -> Facts:
        try:
            allowed = self._allow(kind, os.stat(path).st_size)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        request = _Request(kind, str(path), *allowed)
        used = self._child is not None
        line = self._exchange(request)
        if not line.endswith(b"\n") and used:
            # It may have died of what a file before did to it.
            self._end()
            line = self._exchange(request)
        if not line.endswith(b"\n"):
            raise InputError(f"{path}: {_how_it_ended(line, self._end(), allowed)}")
        answer = json.loads(line)
        if answer["problem"]:
            self._end()
            raise InputError(answer["problem"])
        return msgspec.convert(answer["facts"], facts)

    def _exchange(self, request: _Request) -> bytes:
        """Return one line, or less of it if the child ended or has too much to say."""
        self._child = self._child or _start()
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        line = json.dumps(msgspec.to_builtins(request)).encode() + b"\n"
        try:
            os.write(self._child.stdin.fileno(), line)  # less than a pipe takes at once
        except BrokenPipeError:
            return b""
        return self._child.stdout.readline(_MAX_ANSWER_BYTES)

    def _end(self) -> int:
        """End the child, if it has not ended by itself, and return its status."""
        child, self._child = self._child, None
        if child is None:
            return 0
        with child:
            child.kill()
        return child.returncode


def _start() -> "subprocess.Popen[bytes]":
    try:
        child = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    except OSError as error:
        raise RunError(f"cannot start a process to read files in: {error.strerror}") from None
    assert child.stdout is not None
    if child.stdout.readline(len(_READY)) != _READY:
        with child:
            child.kill()
        command = shlex.join(_COMMAND)
        raise RunError(f"cannot start a process to read files in; `{command}` says why")
    return child


def _how_it_ended(line: bytes, status: int, allowed: Allowance) -> str:
    if len(line) == _MAX_ANSWER_BYTES:
        return f"names more individuals than fit in {_MAX_ANSWER_BYTES // _MIB} MiB"
    if status == -signal.SIGALRM:
        return f"reading it took more than {allowed.seconds:.3g} seconds and was given up"
    if status < 0:
        return f"the process that read it died ({signal.Signals(-status).name})"
    return f"the process that read it ended with status {status}"


# Child --------------------------------------------------------------------------------------------


def main() -> None:
    """Answer requests from standard input until it ends."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.buffer.write(_READY)
    sys.stdout.buffer.flush()
    for line in sys.stdin.buffer:
        request = msgspec.convert(json.loads(line), _Request)
        _limit_memory(request.memory)
        signal.setitimer(signal.ITIMER_REAL, request.seconds)
        answer = json.dumps(_answer(request)).encode()
        signal.setitimer(signal.ITIMER_REAL, 0)
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.buffer.flush()


def _limit_memory(size: int) -> None:
    """Let allocations beyond so many bytes fail; mapped libraries and stacks do not count."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _answer(request: _Request) -> dict[str, Any]:
    """Return {problem, facts}, of which one is None."""
    try:
        return {"problem": None, "facts": msgspec.to_builtins(_facts(request))}
    except (InputError, MemoryError) as error:
        problem = str(error)
        if isinstance(error, MemoryError) or isinstance(error.__context__, MemoryError):
            memory = f"{request.memory // _MIB} MiB of memory"
            problem = f"{request.path}: reading it needs more than {memory} and was given up"
        return {"problem": problem, "facts": None}


def _facts(request: _Request) -> PopulationFacts | WeightsFacts | HistoryFacts:
    path = Path(request.path)
    if request.kind == "population":
        return population_facts(path)
    if request.kind == "weights":
        return weights_facts(path, read_rows=True)
    return history_facts(path)


if __name__ == "__main__":
    main()
