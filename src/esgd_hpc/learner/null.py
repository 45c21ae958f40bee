"""A learner of the null task: it has weights, trains nothing, and scores them by their squares."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from esgd_hpc import rng
from esgd_hpc.config import Recipe
from esgd_hpc.layout import Layout
from esgd_hpc.learner import Built, Score
from esgd_hpc.parallel.agreement import together
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import Draw, HyperparameterValue, Weights, finite_fitness
from esgd_hpc.sgd.optimizers import drawn_hyperparameters
from esgd_hpc.tasks.needs import needs_of
from esgd_hpc.tasks.null import sphere

if TYPE_CHECKING:
    from mpi4py import MPI

_NOTHING: Weights = np.empty(0, dtype=np.float32)


class NullLearner:
    """Holds the individual at hand on the leader; the others of the group hear its fitness."""

    has_final_scores = False

    def __init__(self, layout: Layout, seed: int, group: "MPI.Comm") -> None:
        """Take the communicator of the group; it stays the caller's."""
        self.layout = layout
        self._seed, self._group = seed, group
        self._loaded = self._kept = _NOTHING

    def new_weights(self, uid: int) -> Weights:
        stream = rng.stream(self._seed, 0, 0, uid, rng.Purpose.INITIAL_WEIGHTS)
        weights: Weights = stream.standard_normal(self.layout.size, dtype=np.float32)
        return weights

    def load(self, weights: Weights | None) -> None:
        self._loaded = _NOTHING if weights is None else weights

    def weights(self) -> Weights:
        return self._loaded.copy()

    def snapshot(self, optimizer: Any = None) -> None:
        self._kept = self._loaded

    def kept_weights(self) -> Weights:
        return self._kept.copy()

    def restore(self, optimizer: Any = None) -> None:
        self._loaded = self._kept

    def optimizer(self, draw: Draw) -> None:
        """Return none: nothing trains."""

    def configure(self, hyperparameters: Mapping[str, HyperparameterValue]) -> None:
        """Do nothing: no hyper-parameter acts on anything."""

    def train_epoch(
        self,
        optimizer: Any,
        draw: Draw,
        generation: int,
        epoch: int,
        uid: int,
        failure: str = "",
    ) -> Score:
        return self.score()

    def score(self, *, recalibrate: bool = False) -> Score:
        fitness = sphere(self._loaded) if self._group.rank == 0 else 0.0
        if self._group.size > 1:
            fitness = self._group.bcast(fitness)
        return Score(finite_fitness(fitness), {}, False)

    def recalibrated(self, weights: Weights) -> Weights:
        return weights.copy()

    def final_scores(self) -> dict[str, float]:
        return {}


@contextmanager
def null_learner(recipe: Recipe, topology: Topology) -> Iterator[Built]:
    """Give the learner of the null task for a `with` block. Collective over the world."""
    needs = together(topology.world, f"loading task {recipe.task}", lambda: needs_of(recipe))
    yield Built(
        learner=NullLearner(needs.layout, recipe.seed, topology.group),
        task=None,
        hyperparameters=drawn_hyperparameters(recipe, needs.hyperparameters),
        device_type="cpu",
        device_name="cpu",
        averaging="nothing",
    )
