"""What a run shows in TensorBoard: its numbers, generation by generation.

Events are written here and now, by one write a generation, rather than by torch's SummaryWriter:
that has a thread, whose errors end on the screen, and loads TensorFlow where there is one.
"""

import logging
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from esgd_hpc.errors import InputError
from esgd_hpc.history import GenerationRow, History
from esgd_hpc.population import Individual, Population

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

log = logging.getLogger(__name__)

FOLDER = "tensorboard"
"""Where the log lies in the output folder."""

_MAX = 3e38
"""Bound of the numbers that are logged: events hold float32, and histograms a sum of squares."""
_BINS = 30

_FITNESS = (
    *("best", "best_ever", "elite_average"),
    *("lower_quartile", "median", "upper_quartile", "worst"),
)


def check_tensorboard(output: Path | None) -> None:
    """Raise InputError where a log was asked for that cannot be: `logging.tensorboard = true`."""
    key = "logging.tensorboard = true"
    if output is None:
        raise InputError(f"{key}: the log lies in the output folder; name one")
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise InputError(
            f'{key} needs TensorBoard ({error}); install it: pip install "esgd-hpc[tensorboard]"'
        ) from None


class TensorBoardLog:
    """A log of a run in a file of its own. On rank 0 only.

    Where the disk refuses, that is told once, and the run goes on without the log.
    """

    def __init__(self, output: Path) -> None:
        self._folder = output / FOLDER
        self._file: BinaryIO | None = None
        self._given_up = False

    def generation(self, population: Population, history: History) -> None:
        """Log the newest generation. Numbers that are not finite, or beyond float32, are left out.

        The first one hides what older files say of it and of later ones: a job that was killed may
        have been there before.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard.summary import histogram

        row = history.rows[-1]
        best = next(i for i in population.individuals if i.uid == row.best_uid)
        summary = Summary()
        for tag, value in _scalars(row, best).items():
            if abs(value) < _MAX:
                summary.value.add(tag=tag, simple_value=value)
        fitness = np.array([i.fitness for i in population.individuals])
        usable = fitness[np.abs(fitness) < _MAX]
        if len(usable):
            summary.MergeFrom(histogram("fitness/population", usable, bins=_BINS))
        events = [Event(step=row.generation, summary=summary)]
        if self._file is None:
            start = SessionLog(status=SessionLog.START)
            events.insert(0, Event(file_version="brain.Event:2"))
            events.insert(1, Event(step=row.generation, session_log=start))
        self._write(events)

    def close(self) -> None:
        """Log nothing more."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, events: "list[Event]") -> None:
        from torch.utils.tensorboard import RecordWriter

        if self._given_up:
            return
        try:
            self._file = self._file or self._open()
            records = RecordWriter(self._file)
            for event in events:
                event.wall_time = time.time()
                records.write(event.SerializeToString())
            records.flush()
        except OSError as error:
            self._given_up = True
            log.warning(
                "%s: TensorBoard's log cannot be written: %s; the run goes on without it",
                self._folder,
                error.strerror,
            )
            with suppress(OSError):  # closing writes what could not be written
                self.close()

    def _open(self) -> BinaryIO:
        """Make a file that TensorBoard, which goes by the names, reads after the older ones."""
        now = time.time_ns()
        name = f"events.out.tfevents.{now // 10**9}.{now % 10**9:09}.{socket.gethostname()}"
        self._folder.mkdir(parents=True, exist_ok=True)
        return (self._folder / f"{name}.{os.getpid()}").open("xb")


def _scalars(row: GenerationRow, best: Individual) -> Mapping[str, float]:
    """Return tag to value."""
    scalars = {f"fitness/{name}": getattr(row, name) for name in _FITNESS}
    scalars["elite/offspring_fraction"] = row.elite_offspring_fraction
    if row.best_optimizer != "none":
        scalars["best/learning_rate"] = row.best_learning_rate
    scalars |= {f"best/{name}": value for name, value in best.metrics.items()}
    scalars["diversity/all"] = row.diversity
    scalars |= {f"diversity/{name}": value for name, value in row.diversity_by_optimizer.items()}
    scalars |= {f"individuals/{name}": n for name, n in row.individuals_by_optimizer.items()}
    scalars |= {f"seconds/{phase}": value for phase, value in row.seconds.items()}
    return scalars
