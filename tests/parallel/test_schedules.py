"""What changes the learning rate and the gradient inside a run: milestones, patience, clipping."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn

import esgd_hpc
from esgd_hpc.api import RunResult
from esgd_hpc.tasks.base import Batch, Data, Step, Task

WORLD = MPI.COMM_WORLD


class Slope(Task):
    """One weight w with loss s w: each step of plain SGD moves it by -s times the learning rate."""

    def __init__(self, slope: float = 1.0, rises: bool = False) -> None:
        ones = torch.ones(4, 1)
        super().__init__(training=(ones,), validation=(ones,), test=(ones,))
        self.slope, self.rises = slope, rises

    def model(self) -> nn.Module:
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        return model

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        loss: Tensor = self.slope * model(batch[0]).mean()
        return loss

    def score(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        value = model(batch[0]).mean()
        return {"loss": 100.0 + (-value if self.rises else value)}


def train(task: Task, **sgd: Any) -> RunResult:
    """Train one individual by plain SGD; batches are the whole data."""
    recipe = esgd_hpc.recipe_from(
        {
            "task": "slope",
            "method": "sgd-only",
            "generations": sgd.pop("generations", 1),
            "population": {"parents": 1},
            "sgd": {"batch_size": 4, "optimizers": [{"name": "sgd", "learning_rate": 1.0}], **sgd},
            "topology": {"gradient_averaging": "mpi", "ranks_per_group": WORLD.size},
        }
    )
    return esgd_hpc.run(recipe, WORLD, task=task)


def moved(task: Task, **sgd: Any) -> float:
    """Return how far the weight of the last generation went."""
    result = train(task, **sgd)
    (weights,) = WORLD.bcast(list(result.population.weights.values()))
    return -float(weights[0])


@pytest.mark.parallel(1, 2)
def test_milestones_lower_the_learning_rate_over_generations() -> None:
    far = moved(Slope(), generations=3, epochs=2, milestones=[1, 4], milestone_factor=0.5)
    assert far == pytest.approx(1.0 + 3 * 0.5 + 2 * 0.25)


@pytest.mark.parallel(1, 2)
def test_patience_lowers_the_learning_rate_within_a_step() -> None:
    # The fitness rises in each epoch and nothing is undone.
    settings = {"epochs": 6, "backoff_probability": 0.0, "patience": 2, "patience_factor": 0.5}
    # Two epochs at 1, two at 1/2, two at 1/4; the next generation starts at 1 again.
    assert moved(Slope(rises=True), **settings) == pytest.approx(3.5)
    assert moved(Slope(rises=True), **settings, generations=2) == pytest.approx(7.0)
    # Where it falls, patience has no end.
    assert moved(Slope(), **settings) == pytest.approx(6.0)


class Swings(Slope):
    """Falls and rises in turn, and is never as good as at first."""

    def score(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        far = -model(batch[0]).mean()
        return {"loss": 10.0 + far - 2.0 * (torch.floor(far) % 2)}


@pytest.mark.parallel(1)
def test_patience_waits_for_a_new_best_and_not_for_the_last_epoch() -> None:
    # The losses of 0, 1, 2, 3, ... are 10, 9, 12, 11, 14, 13: a new best in the first epoch alone.
    settings = {"backoff_probability": 0.0, "patience": 2, "patience_factor": 0.5}
    assert moved(Swings(), epochs=3, **settings) == pytest.approx(3.0)
    assert moved(Swings(), epochs=4, **settings) == pytest.approx(3.5)


@pytest.mark.parallel(1)
def test_a_single_network_keeps_what_patience_made_of_its_learning_rate() -> None:
    recipe = esgd_hpc.recipe_from(
        {
            "task": "slope",
            "method": "single",
            "generations": 2,
            "sgd": {"epochs": 2, "backoff_probability": 0.0, "patience": 2, "batch_size": 4},
            "single": {"learning_rate": 1.0},
        }
    )
    result = esgd_hpc.run(recipe, WORLD, task=Slope(rises=True))
    (weights,) = result.population.weights.values()
    assert -float(weights[0]) == pytest.approx(2 * 1.0 + 2 * 0.1)
    (individual,) = result.population.individuals
    assert individual.draw is not None
    assert individual.draw.learning_rate == pytest.approx(0.01)


@pytest.mark.parallel(1, 2)
def test_a_champion_has_test_scores_too() -> None:
    result = train(Slope(rises=True), backoff_probability=0.0)
    assert result.population.champion is not None
    assert result.best.fitness == 100.0
    assert result.best.metrics["test_loss"] == 100.0
    assert result.population.individuals[0].metrics["test_loss"] == 101.0


@pytest.mark.parallel(1, 2)
def test_a_gradient_is_scaled_down_to_the_clip_and_never_up() -> None:
    assert moved(Slope(slope=40.0), gradient_clip=0.25) == pytest.approx(0.25)
    assert moved(Slope(slope=0.125), gradient_clip=0.25) == pytest.approx(0.125)
    assert moved(Slope(slope=40.0)) == pytest.approx(40.0)


class Sequential(Slope):
    """Has steps of its own: three, of different weights, in order."""

    def training_steps(
        self, batch_size: int, stream: np.random.Generator, rank: int, size: int
    ) -> Sequence[Step]:
        mine = 1.0 if rank == 0 else 0.0  # rank 0 has all samples
        return [Step(place, mine, scale) for place, scale in enumerate((1.0, 0.5, 0.25))]

    def training_batches(
        self, data: Data, steps: Sequence[Step], device: torch.device
    ) -> Iterator[Batch | None]:
        for step in steps:
            yield (data[0],) if step.share else None


@pytest.mark.parallel(1, 2, 3)
def test_a_task_can_have_steps_of_its_own() -> None:
    assert moved(Sequential(), epochs=2) == pytest.approx(2 * 1.75)


class Overflowing(Slope):
    """Has a metric that cannot be computed where the loss is large."""

    def summary(self, means: Mapping[str, float]) -> Mapping[str, float]:
        return {"perplexity": math.exp(100.0 * (means["loss"] - 100.0))}


@pytest.mark.parallel(1, 2)
def test_a_summary_that_raises_fails_the_individual_on_all_ranks() -> None:
    # The loss rises by 8 in the epoch: exp(800) overflows. There is no other individual.
    with pytest.raises(esgd_hpc.RunError, match=r"every individual failed.*OverflowError"):
        train(Overflowing(slope=8.0, rises=True))


class Broken(Sequential):
    """Cannot plan, or cannot make a batch, on the last rank."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def training_steps(
        self, batch_size: int, stream: np.random.Generator, rank: int, size: int
    ) -> Sequence[Step]:
        if self.where == "steps" and rank == size - 1:
            raise ValueError("no plan")
        return super().training_steps(batch_size, stream, rank, size)

    def training_batches(
        self, data: Data, steps: Sequence[Step], device: torch.device
    ) -> Iterator[Batch | None]:
        for place, batch in enumerate(super().training_batches(data, steps, device)):
            if self.where == "batches" and place == 1 and WORLD.rank == WORLD.size - 1:
                return
            yield batch


@pytest.mark.parallel(1, 2, 3)
@pytest.mark.parametrize("where", ["steps", "batches"])
def test_steps_that_fail_on_one_rank_fail_the_individual_on_all(where: str) -> None:
    with pytest.raises(esgd_hpc.RunError, match="every individual failed"):
        moved(Broken(where))
