"""`esgd run`: train over the ranks of MPI_COMM_WORLD, with exit statuses for job scripts."""

import argparse
import gc
import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from esgd_hpc.errors import EsgdError, InputError, StoppedEarly, print_error
from esgd_hpc.launch import check_world, forgotten_launcher, launched_rank

if TYPE_CHECKING:
    from esgd_hpc.config import Recipe

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAVE_SIGNAL = signal.SIGUSR2
SECONDS_TO_REPEAT = 5.0
"""A signal this long after the first means it; schedulers may send one twice at once."""
SECONDS_TO_WAIT = 30.0


def execute(arguments: argparse.Namespace) -> int:
    """Run and return the exit status; the same on every rank."""
    started = time.monotonic()
    stop, save = _StopRequest(), _SaveRequest()  # before anything that takes long
    from esgd_hpc.parallel.world import end_all, keep_status, library_version, start_world

    world = start_world()
    check_world(world.size, os.environ, library_version())
    try:
        status = _run(arguments, world, stop, save, started)
        gc.freeze()  # the process ends without looking through all of torch for garbage
        keep_status()
        return status
    except EsgdError as error:
        print_error(error, world.rank)
        _wait_for_all(world)
        keep_status()
        return error.exit_status
    except KeyboardInterrupt:
        print(
            f"esgd: rank {world.rank} was interrupted; the newest complete generation stays,"
            " start the same command again to go on",
            file=sys.stderr,
            flush=True,
        )
        world.Abort(130)
        raise
    except BaseException as error:
        end_all(world, error)


def _wait_for_all(world: "MPI.Comm") -> None:  # type: ignore[name-defined]  # noqa: F821
    """Wait until every rank is here: launchers end the others when one leaves with an error.

    Should they never come, which would be a defect, this rank ends them.
    """
    barrier = world.Ibarrier()
    deadline = time.monotonic() + SECONDS_TO_WAIT
    while not barrier.Test():
        if time.monotonic() > deadline:
            print(f"esgd: rank {world.rank} waits in vain for others", file=sys.stderr, flush=True)
            world.Abort(1)
        time.sleep(0.01)


def _run(
    arguments: argparse.Namespace,
    world: "MPI.Comm",  # type: ignore[name-defined]  # noqa: F821
    stop: "_StopRequest",
    save: "_SaveRequest",
    started: float,
) -> int:
    from esgd_hpc.parallel.agreement import on_root

    def read() -> "Recipe":
        from esgd_hpc.recipe_file import load_recipe  # rank 0 alone needs what it imports

        return load_recipe(arguments.recipe, arguments.overrides)

    recipe = on_root(world, "reading the recipe", read)
    # Before torch and its thread pools are loaded.
    os.environ.setdefault("OMP_NUM_THREADS", str(recipe.topology.threads_per_rank))
    _log_to_stderr(arguments.log_level, world.rank, world.rank // recipe.topology.ranks_per_group)

    from esgd_hpc.api import plan, run
    from esgd_hpc.parallel.watchdog import watching
    from esgd_hpc.progress import progress_for

    output = Path(arguments.output or Path("runs") / Path(arguments.recipe).stem)
    changing = [override.partition("=")[0].strip() for override in arguments.overrides]
    if arguments.ranks is not None and not (arguments.dry_run and arguments.ranks > 0):
        raise InputError(
            f"--ranks {arguments.ranks}: a number of at least 1, with --dry-run alone; a job"
            " gets its ranks from its launcher: mpirun -n N, srun -n N"
        )
    if arguments.dry_run:
        text = plan(
            recipe,
            world,
            output=output,
            resume=arguments.resume,
            changing=changing,
            ranks=arguments.ranks,
        )
        if world.rank == 0:
            try:
                print(text, flush=True)
            except BrokenPipeError:  # `esgd run RECIPE --dry-run | head`
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    progress = progress_for(world.rank)
    if note := forgotten_launcher(world.size, os.environ):
        progress.note(note)
    try:
        with watching(world, recipe.run.watchdog, recipe.topology.ranks_per_group):
            result = run(
                recipe,
                world,
                output=output,
                resume=arguments.resume,
                changing=changing,
                progress=progress,
                should_stop=stop.requested,
                should_save=save.taken,
                started=started,
            )
    finally:
        progress.close()
    made = result.unfinished
    if world.rank == 0:
        metrics = "".join(f", {name} {value:.4g}" for name, value in result.best.metrics.items())
        so_far = " so far, in the unfinished generation" if made and made.has_begun else ""
        best = f"individual {result.best.uid}, fitness {result.best.fitness:.6g}"
        print(f"best{so_far}: {best}{metrics}")
        print(f"files: {output}", flush=True)
    if made is not None:
        where = (
            f"in generation {made.generation}, {made.told()}"
            if made.has_begun
            else f"at the complete checkpoint of generation {made.generation - 1}"
        )
        raise StoppedEarly(f"stopped {where}; start the same command again to go on")
    return 0


class _StopRequest:
    """Remembers a first SIGTERM or SIGUSR1; one more, later on, ends the process as usual."""

    def __init__(self) -> None:
        self._first: float | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = now
            _acknowledge(number, "the run stops at its next epoch or child")
        elif now - self._first > SECONDS_TO_REPEAT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return self._first is not None


class _SaveRequest:
    """Remembers a SIGUSR2 until it is taken."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(SAVE_SIGNAL, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        _acknowledge(number, "one checkpoint more after this generation")

    def taken(self) -> bool:
        """Whether this rank was asked for a checkpoint since the last call."""
        asked, self._asked = self._asked, False
        return asked


def _acknowledge(number: int, what: str) -> None:
    """Say that a signal has come; on rank 0 alone, for launchers pass it on to all."""
    if not launched_rank():
        print(f"esgd: {signal.Signals(number).name}: {what}", file=sys.stderr, flush=True)


def _log_to_stderr(level: str, rank: int, group: int) -> None:
    logging.basicConfig(
        level=level.upper(),
        format=f"%(asctime)s rank {rank} group {group} %(levelname)s %(message)s",
        stream=sys.stderr,
    )
