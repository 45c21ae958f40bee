"""When a run saves its population, and how it goes on when it cannot."""

import logging
import time
from collections.abc import Callable

from esgd_hpc import pulse
from esgd_hpc.checkpoint.writer import CheckpointWriter
from esgd_hpc.config import CheckpointSettings
from esgd_hpc.errors import EsgdError, RunError
from esgd_hpc.history import History
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import Population
from esgd_hpc.underway import Underway

log = logging.getLogger(__name__)


class Saving:
    """Saves at the end of generations, as often as asked for; without a writer never.

    A checkpoint that fails is told and tried again after the next generation. Only where it must be
    (the first, while nothing is lost yet, and the last) does the failure end the run. Methods are
    collective over the world.
    """

    def __init__(
        self, writer: CheckpointWriter | None, settings: CheckpointSettings, topology: Topology
    ) -> None:
        self._writer, self._settings, self._world = writer, settings, topology.world
        self._started = time.monotonic()
        self._owed = False

    def save(
        self, population: Population, history: History, *, must: bool, asked: bool = False
    ) -> None:
        """Save the population if it `must` be, if that is `asked` for, or if it is time.

        What must be is waited for, and a RunError where it fails; others are written beside what
        comes next.
        """
        if self._writer is None:
            return
        self._attempt(self._writer, self._writer.settle)
        if not (must or asked or self._owed or self._is_time(population.generation)):
            return
        self._attempt(self._writer, self._writer.finish)
        self._started = time.monotonic()
        if must:
            self._must(self._writer, population, history)
            return
        try:
            self._writer.start(population, history)
        except EsgdError as error:
            self._failed(self._writer, error)
        else:
            self._owed = False

    def save_underway(self, population: Population, history: History, underway: Underway) -> None:
        """Save what is done of a generation that is interrupted, and wait for it.

        Where nothing is, the generation before it is saved, if it is not on disk yet. Raises
        RunError where it cannot be.
        """
        if self._writer is None:
            return
        self._attempt(self._writer, self._writer.finish)
        if underway.has_begun:
            self._must(self._writer, population, history, underway)
        elif not self._writer.has(population.generation):
            self._must(self._writer, population, history)

    def longest_seconds(self) -> float:
        """Return how long the slowest checkpoint took, on every rank."""
        return self._writer.longest_seconds() if self._writer else 0.0

    def close(self) -> None:
        """Wait for what is being written."""
        if self._writer is not None:
            self._attempt(self._writer, self._writer.finish)

    def _is_time(self, generation: int) -> bool:
        minutes = (time.monotonic() - self._started) / 60
        if not self._settings.every_minutes:
            return generation % self._settings.every == 0
        with pulse.waiting("waiting for rank 0 to say whether to save"):
            is_time: bool = self._world.bcast(minutes >= self._settings.every_minutes)
        return is_time

    def _must(
        self,
        writer: CheckpointWriter,
        population: Population,
        history: History,
        underway: Underway | None = None,
    ) -> None:
        try:
            writer.start(population, history, underway)
            writer.finish()
        except EsgdError as error:
            newest = f"{writer.newest()}, what came after it is lost; "
            raise RunError(
                f"{error}; {newest if population.generation else ''}make room, or mend the"
                " folder, and start the same command again"
            ) from None
        self._owed = False

    def _attempt(self, writer: CheckpointWriter, step: Callable[[], None]) -> None:
        try:
            step()
        except EsgdError as error:
            self._failed(writer, error)

    def _failed(self, writer: CheckpointWriter, error: EsgdError) -> None:
        self._owed = True
        if self._world.rank == 0:
            log.error("%s; %s, and the run goes on to the next", error, writer.newest())
