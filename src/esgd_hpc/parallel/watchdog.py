"""The watchdog: names a rank that makes no progress, and ends the job that would wait for it.

    every rank       a thread tells rank 0 every few seconds what the rank is at (a `Beat`)
    rank 0           a thread keeps the newest beat of each rank, and judges them
    the last rank    listens for rank 0: with several nodes it is on another one

Beats have a communicator of their own, so they get through while the main threads wait in MPI,
Horovod or user code. Where nothing comes, the process was stopped, its node hangs, or code in it
does not let go of Python's lock; faulthandler, which needs no lock, then shows its stack.
"""

import faulthandler
import logging
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from os import getpid
from pathlib import Path
from typing import NoReturn

import msgspec
from mpi4py import MPI

from esgd_hpc import pulse
from esgd_hpc.parallel.agreement import closed_together

log = logging.getLogger(__name__)

MAX_FRAMES = 12
MAX_NAMED = 5
LONGEST_INTERVAL, SHORTEST_INTERVAL = 10.0, 0.2
"""Seconds from beat to beat; between them an eighth of the limit."""
LONGEST_TICK = 1.0
"""Seconds after which the thread looks for messages."""
SECONDS_TO_LEAVE = 0.01
"""From look to look while the ranks say good-bye."""
SECONDS_TO_ABORT = 15.0
COLLECTIVE = ("/esgd_hpc/parallel/", "/horovod/", "/torch/distributed/", "/mpi4py/")
"""Where Python's innermost frame is while a rank is in a collective."""
STATES = {
    "T": "was stopped",
    "t": "was stopped by a debugger",
    "D": "waits for a disk",
    "Z": "has ended",
    "R": "runs code that does not let go of Python's lock",
    "S": "sleeps in code that does not let go of Python's lock",
}
_BEAT, _ASK = 1, 2


class Frame(msgspec.Struct, frozen=True, array_like=True):
    """A line of a stack."""

    file: str
    line: int
    function: str


class Beat(msgspec.Struct, frozen=True, array_like=True):
    """What a rank tells of itself."""

    host: str
    pid: int
    doing: str
    waiting: bool
    """Whether it waits for other groups."""
    idle: float
    """Seconds without progress."""
    stack: list[Frame]
    """Of its main thread, the innermost frame first."""
    leaving: bool = False
    """Whether this is its last beat."""


class Heard(msgspec.Struct, frozen=True):
    """The newest beat of a rank, and when it came."""

    beat: Beat
    at: float


class Suspect(msgspec.Struct, frozen=True):
    """A rank that is to be named, and why."""

    rank: int
    heard: Heard
    silent: float
    """Seconds without a beat, 0 where beats come."""


class _Ask(msgspec.Struct, frozen=True, array_like=True):
    """Word to a rank: tell what you know of this one, which may be yourself."""

    rank: int
    pid: int


# Judgement ----------------------------------------------------------------------------------------


def silent_ranks(heard: Mapping[int, Heard], now: float, limit: float) -> list[Suspect]:
    """Return the ranks of which nothing came for `limit` seconds, those of the longest first."""
    silent = [Suspect(rank, h, now - h.at) for rank, h in heard.items() if now - h.at >= limit]
    return sorted(silent, key=lambda s: (-s.silent, s.rank))


def suspects(
    heard: Mapping[int, Heard], now: float, limit: float, ranks_per_group: int
) -> list[Suspect]:
    """Return the ranks that keep the run from going on, those most likely at fault first.

    `heard` has all ranks that have not left. A silent rank is at fault. So is a group in which
    nobody makes progress and nobody waits for other groups; or everybody, where no rank of the
    world makes progress any longer. Of those, ranks in a collective wait for the others.
    """
    silent = silent_ranks(heard, now, limit)
    named = {s.rank for s in silent}
    idle = {rank for rank, h in heard.items() if rank in named or h.beat.idle >= limit}
    groups: dict[int, list[int]] = {}
    for rank in heard:
        groups.setdefault(rank // ranks_per_group, []).append(rank)
    still: set[int] = set()
    for ranks in groups.values():
        if idle.issuperset(ranks) and not any(
            heard[rank].beat.waiting for rank in ranks if rank not in named
        ):
            still.update(ranks)
    if not named | still and len(idle) == len(heard):
        still = idle
    standing = [Suspect(rank, heard[rank], 0.0) for rank in still - named]
    return silent + sorted(standing, key=_blame)


def _blame(suspect: Suspect) -> tuple[bool, bool, float, int]:
    beat = suspect.heard.beat
    return _in_collective(beat), beat.waiting, -beat.idle, suspect.rank


def _in_collective(beat: Beat) -> bool:
    return bool(beat.stack) and any(place in beat.stack[0].file for place in COLLECTIVE)


def report(
    found: list[Suspect], now: float, limit: float, ranks_per_group: int, states: Mapping[int, str]
) -> str:
    """Return what is said of suspects. `states` has those of processes, by rank, where known."""
    lines = [
        f"esgd: watchdog: no progress for {limit:.4g} s (run.watchdog = {limit / 60:.4g} minutes);"
        " the job ends with status 1. Most likely at fault:"
    ]
    for suspect in found[:MAX_NAMED]:
        rank, beat = suspect.rank, suspect.heard.beat
        age = now - suspect.heard.at
        lines += [
            f"  {_name(rank, beat.host, beat.pid)}, group {rank // ranks_per_group}:"
            f" {_standing(suspect, states.get(rank, ''))}",
            f"    last progress {beat.idle + age:.1f} s ago, last heartbeat {age:.1f} s ago,"
            f" at: {beat.doing}",
            f"    its stack{' when it was last heard' if suspect.silent else ''}, innermost first:",
            *(f'      File "{f.file}", line {f.line}, in {f.function}' for f in beat.stack),
        ]
    if len(found) > MAX_NAMED:
        lines.append(f"  and {len(found) - MAX_NAMED} more ranks stand still")
    lines.append(
        "  Where it was honest work that takes long: raise run.watchdog (0: never), or let the work"
        " call esgd_hpc.pulse.progress(). The newest complete checkpoint stays; start the same"
        " command again to go on"
    )
    return "\n".join(lines)


def _name(rank: int, host: str, pid: int) -> str:
    return f"rank {rank}, host {host}, process {pid}"


def _standing(suspect: Suspect, state: str) -> str:
    if suspect.silent:
        return (
            f"silent: {state}"
            if state
            else "silent: its process was stopped, its node hangs, or its code does not let go of"
            " Python's lock (then its stack is above or below, under Timeout)"
        )
    if _in_collective(suspect.heard.beat):
        return "in a collective"
    return "standing still" if not suspect.heard.beat.waiting else "waiting for other groups"


# The thread ---------------------------------------------------------------------------------------


@contextmanager
def watching(world: MPI.Intracomm, minutes: float, ranks_per_group: int) -> Iterator[None]:
    """Watch over the ranks of a `with` block; without limit where `minutes` is 0.

    Collective over the world. Ends with the block, also after an EsgdError, which every rank
    raises; after any other exception the rank must abort the world, and is watched until then.
    """
    if minutes == 0.0:
        yield
        return
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        if world.rank == 0:
            log.warning(
                "no watchdog: run.watchdog needs MPI_THREAD_MULTIPLE, and MPI gives level %d of %d",
                *(MPI.Query_thread(), MPI.THREAD_MULTIPLE),
            )
        yield
        return
    with closed_together(Watchdog(world, 60.0 * minutes, ranks_per_group)):
        yield


class Watchdog:
    """The thread of one rank, until `close`. Making one is collective over the world."""

    def __init__(self, world: MPI.Intracomm, limit: float, ranks_per_group: int) -> None:
        self._world, self._limit, self._ranks_per_group = world, limit, ranks_per_group
        self._interval = min(max(limit / 8, SHORTEST_INTERVAL), LONGEST_INTERVAL)
        self._tick = min(self._interval, LONGEST_TICK)
        # The process ends after the run: freeing it would be one more place to wait for others.
        self._comm = world.Dup()
        self._host = socket.gethostname()
        self._main = threading.main_thread().ident
        pulse.doing("starting")
        last = world.size - 1
        self._listener = last if world.rank == 0 else 0
        """Who gets this rank's beats; itself where it is alone."""
        first, now = world.allgather(self._beat(time.monotonic())), time.monotonic()
        watched: Iterable[int] = ()
        if world.rank == 0:
            watched = range(world.size)
        elif world.rank == last:
            watched = (0,)
        self._heard = {rank: Heard(first[rank], now) for rank in watched}
        self._request, self._message = MPI.REQUEST_NULL, b""
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Say good-bye, and keep watch until those who are watched have said it."""
        self._closing.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _run(self) -> None:
        beaten, woken = -self._interval, time.monotonic()
        while not self._closing.is_set():
            before, woken = woken, time.monotonic()
            # One clock reading for all of this round: a round may be stopped in the middle.
            if woken - before > self._tick + self._limit / 4:
                self._start_afresh(woken)
            self._receive(woken)
            if woken - beaten >= self._interval:
                beaten = woken
                faulthandler.dump_traceback_later(self._limit, exit=False)
                self._send_beat(self._beat(woken), woken)
                self._judge(woken)
            self._closing.wait(self._tick)
        self._say_good_bye()

    def _start_afresh(self, now: float) -> None:
        """Forget all ages: this process was suspended, and maybe the whole job with it."""
        pulse.progress()
        self._heard = {rank: Heard(h.beat, now) for rank, h in self._heard.items()}

    def _say_good_bye(self) -> None:
        """Send a last beat, and listen until those who are watched have sent theirs."""
        said = False
        while not said or self._heard or not self._request.Test():
            now = time.monotonic()
            if not said:
                said = self._send_beat(msgspec.structs.replace(self._beat(now), leaving=True), now)
            self._receive(now)
            self._judge(now)
            time.sleep(SECONDS_TO_LEAVE)

    def _beat(self, now: float) -> Beat:
        at = pulse.now()
        frame = sys._current_frames().get(self._main or 0)
        stack: list[Frame] = []
        while frame is not None and len(stack) < MAX_FRAMES:
            code = frame.f_code
            stack.append(Frame(code.co_filename, frame.f_lineno or 0, code.co_name))
            frame = frame.f_back
        idle = 0.0 if at.untimed else max(0.0, now - at.since)
        return Beat(self._host, getpid(), at.doing, at.waiting, idle, stack)

    # Messages -------------------------------------------------------------------------------------

    def _send_beat(self, beat: Beat, now: float) -> bool:
        """Tell whether it was sent: a listener that does not listen is not sent more."""
        if self._world.rank == 0:
            self._hear(0, beat, now)
        if self._listener == self._world.rank:
            return True
        if not self._request.Test():
            return False
        self._message = msgspec.msgpack.encode(beat)
        self._request = self._comm.Isend([self._message, MPI.BYTE], self._listener, _BEAT)
        return True

    def _hear(self, rank: int, beat: Beat, now: float) -> None:
        if beat.leaving:
            self._heard.pop(rank, None)
        else:
            self._heard[rank] = Heard(beat, now)

    def _receive(self, now: float) -> None:
        status = MPI.Status()
        while self._comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG, status):
            message = bytearray(status.Get_count(MPI.BYTE))
            self._comm.Recv([message, MPI.BYTE], status.source, status.tag)
            if status.tag == _BEAT:
                self._hear(status.source, msgspec.msgpack.decode(message, type=Beat), now)
            else:
                self._tell(msgspec.msgpack.decode(message, type=_Ask))

    # What happens where a rank stands still -------------------------------------------------------

    def _judge(self, now: float) -> None:
        if self._world.rank == 0:
            found = suspects(self._heard, now, self._limit, self._ranks_per_group)
        else:  # beats of one rank say nothing of its group
            found = silent_ranks(self._heard, now, self._limit)
        if found:
            self._end(found, now)

    def _end(self, found: list[Suspect], now: float) -> NoReturn:
        """Say who is at fault, and abort."""
        named = found[:MAX_NAMED]
        states: dict[int, str] = {}
        sent = []  # with the buffers, until the end
        for suspect in named:
            rank, beat = suspect.rank, suspect.heard.beat
            ask = _Ask(rank, beat.pid)
            if suspect.silent and beat.host == self._host:
                states[rank] = _process_state(beat.pid)
                continue
            knower = self._neighbour(suspect, found) if suspect.silent else rank
            if knower == self._world.rank:
                self._tell(ask)
            elif knower is not None:
                message = msgspec.msgpack.encode(ask)
                sent.append((message, self._comm.Isend([message, MPI.BYTE], knower, _ASK)))
        time.sleep(2.0 * self._tick)  # for them to print what they know
        text = report(found, now, self._limit, self._ranks_per_group, states)
        _abort(self._world, text)

    def _neighbour(self, suspect: Suspect, found: list[Suspect]) -> int | None:
        """Return a rank on the host of a silent one that can tell what became of it."""
        silent = {s.rank for s in found if s.silent}
        for rank, heard in self._heard.items():
            if rank not in silent and heard.beat.host == suspect.heard.beat.host:
                return rank
        return None

    def _tell(self, ask: _Ask) -> None:
        """Print what is known of a rank: all stacks of this one, or how another process fares."""
        name = f"esgd: watchdog: {_name(ask.rank, self._host, ask.pid)}"
        if ask.rank == self._world.rank:
            _print(f"{name}: all its threads, innermost frames first")
            faulthandler.dump_traceback(all_threads=True)
        elif state := _process_state(ask.pid):
            _print(f"{name}: {state}")


def _process_state(pid: int) -> str:
    """Return in words what became of a process of this machine, "" where nothing is known."""
    with suppress(OSError, IndexError):
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if letter in STATES:
            return f"its process {STATES[letter]} (state {letter} in /proc/{pid}/stat)"
    return ""


def _print(text: str) -> None:
    with suppress(OSError, ValueError):  # standard error may be gone
        print(text, file=sys.stderr, flush=True)


def _abort(world: MPI.Intracomm, text: str) -> NoReturn:
    _print(text)
    # Should MPI not manage to end this process, it ends by itself, whoever holds Python's lock.
    faulthandler.dump_traceback_later(SECONDS_TO_ABORT, exit=True)
    world.Abort(1)
