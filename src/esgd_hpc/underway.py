"""What of a generation is done: enough to interrupt it, save it, and go on with it later."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from esgd_hpc.population import Individual


class Underway(msgspec.Struct, kw_only=True):
    """The generation that is being made; the same on every rank, but for children.

    Beside it the population has the newest weights: those after the SGD step of whoever has been
    trained, and all of them after the last evolution step that is done.
    """

    generation: int
    before: list[Individual]
    """The population that the generation began with, in uid order."""
    trained: list[Individual] = []
    """Records after the SGD step, in uid order; of the whole population once that is done."""
    champion_is_lost: bool = False
    """Whether the population's champion is a state that this SGD step, not done yet, has left."""
    steps: int = 0
    """Evolution steps that are done."""
    offspring: list[Individual] = []
    """Their children; on rank 0."""
    selected: list[int] = []
    """uids that survived one of them."""
    scored: list[Individual] = []
    """Children of the evolution step that is not done yet, in uid order; on rank 0."""
    seconds: dict[str, float] = {}
    """Wall time of rank 0 by phase, each without the phases inside it."""
    traffic: dict[str, int] = {}
    """Bytes of weights that the exchanges moved between groups, and that they had to at least."""

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the wall time of the block to a phase, without that of phases inside it."""
        started, before = time.perf_counter(), sum(self.seconds.values())
        yield
        inside = sum(self.seconds.values()) - before
        own = time.perf_counter() - started - inside
        self.seconds[phase] = self.seconds.get(phase, 0.0) + own

    @property
    def is_trained(self) -> bool:
        """Whether the SGD step is done."""
        return len(self.trained) == len(self.before)

    @property
    def has_begun(self) -> bool:
        """Whether anything is done that would be lost."""
        return bool(self.trained)

    def told(self) -> str:
        """Return in words how far the generation has come."""
        text = f"{len(self.trained)} of {len(self.before)} individuals trained"
        if self.steps:
            text += f", {self.steps} evolution step{'s' if self.steps > 1 else ''} done"
        if self.scored:
            text += f", {len(self.scored)} children scored"
        return text
