"""What trains and scores one individual at a time, as the generation loop sees it.

    network   a network of torch, data-parallel over the ranks of a group; `build` makes it
    null      nothing: weights without a network, to measure what coordination costs

Ranks of a group call the methods together; "collective" below is over the group.
"""

import logging
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from esgd_hpc.config import Drawn
from esgd_hpc.layout import Layout
from esgd_hpc.population import Draw, HyperparameterValue, Weights

if TYPE_CHECKING:
    from esgd_hpc.tasks.base import Task

log = logging.getLogger(__name__)


class Score(msgspec.Struct, frozen=True):
    """What scoring found; the same on every rank of the group."""

    fitness: float
    """Mean loss over the samples, float64; +inf for NaN, infinity and failure."""
    metrics: dict[str, float]
    """Means over the samples of all else that the task's `score` gives, and its `summary`."""
    failed: bool
    """Whether a rank of the group could not score its batches."""


class IndividualFailed(Exception):
    """Training or scoring failed on some rank of the group; raised on all of them."""


class Learner(Protocol):
    """Trains and scores the individual that was loaded last."""

    layout: Layout

    def new_weights(self, uid: int) -> Weights:
        """Return the weights of a new random individual, shape [P]; the same for the same uid."""

    def load(self, weights: Weights | None) -> None:
        """Load an individual, given on the leader alone. Collective."""

    def weights(self) -> Weights:
        """Return a copy of the loaded individual's weights, shape [P]."""

    def snapshot(self, optimizer: Any = None) -> None:
        """Keep the loaded weights and the optimizer's state, to come back to with `restore`."""

    def kept_weights(self) -> Weights:
        """Return a copy of the weights of the last snapshot, shape [P]."""

    def restore(self, optimizer: Any = None) -> None:
        """Bring weights and optimizer state back to those of the last snapshot."""

    def optimizer(self, draw: Draw) -> Any:
        """Return a new optimizer for the loaded individual, with the drawn hyper-parameters."""

    def configure(self, hyperparameters: Mapping[str, HyperparameterValue]) -> None:
        """Apply what was drawn for the task to the individual that is loaded."""

    def train_epoch(
        self,
        optimizer: Any,
        draw: Draw,
        generation: int,
        epoch: int,
        uid: int,
        failure: str = "",
    ) -> Score:
        """Train the loaded individual for one epoch, then score it. Collective.

        `draw` has the batch size, and the learning rate of this epoch. A rank that could not even
        prepare comes with its `failure`. Raises IndividualFailed on every rank of the group if one
        of them failed.
        """

    def score(self, *, recalibrate: bool = False) -> Score:
        """Score the loaded individual, after estimating its BatchNorm statistics anew if asked.

        Collective; raises IndividualFailed on every rank of the group if one of them failed.
        """

    def recalibrated(self, weights: Weights) -> Weights:
        """Return the weights with BatchNorm statistics as `score(recalibrate=True)` saw them."""

    @property
    def has_final_scores(self) -> bool:
        """Whether there is more to say of the last generation than `score` tells."""

    def final_scores(self) -> dict[str, float]:
        """Return what the loaded individual scores on test data, and metrics of whole data sets.

        Collective; the leader's has all of them. What fails is logged and absent.
        """


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """The learner of a run and what is known of it; complete on every rank."""

    learner: Learner
    task: "Task | None"
    """None for the null task."""
    hyperparameters: dict[str, Drawn]
    """What a draw covers besides the optimizer."""
    device_type: str
    device_name: str
    """Of this rank's device."""
    averaging: str
    """What averages gradients."""


def told(error: Exception) -> str:
    """Return what an exception says, and let go of all that its traceback holds, tensors above all.

    Kept, they would make the next individual run out of memory as well.
    """
    log.debug("%s", "".join(traceback.format_exception(error)).rstrip())
    text = f"{type(error).__name__}: {error}"
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = None
    return text
