"""The score of the network at hand: the loss over fixed batches, shared by the ranks of the group.

Every batch is scored whole by one rank and the group sums one vector in which each place has one
contributor, so neither the number of ranks nor of groups can change a bit of the result.
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from esgd_hpc import pulse
from esgd_hpc.data.batches import Batch, Data, fetch, fixed_batches, length
from esgd_hpc.learner import Score, told
from esgd_hpc.population import finite_fitness


class Scorer(Protocol):
    """The methods of a task that `evaluate` calls."""

    def score(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]: ...

    def summary(self, means: Mapping[str, float]) -> Mapping[str, float]: ...


class MetricSum(Protocol):
    """The part of the group's collectives that `evaluate` needs, see `parallel.averaging`."""

    rank: int
    size: int

    def sum_metrics(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]: ...


def evaluate(
    model: nn.Module,
    task: Scorer,
    data: Data,
    batch_size: int,
    names: Sequence[str],
    group: MetricSum,
    device: torch.device,
    failure: str = "",
) -> tuple[Score, str]:
    """Score the model; return the score of the group, and what went wrong on this rank.

    Collective over the group. `names` are what the task's `score` gives, "loss" first. A rank that
    comes with a `failure` computes nothing and makes the score a failed one.
    """
    batches = fixed_batches(length(data), batch_size)
    sums = np.zeros((len(batches), len(names)), dtype=np.float64)
    mine = range(group.rank, len(batches), group.size)
    if not failure:
        try:
            model.eval()
            with torch.no_grad():
                found = []
                for place, batch in zip(
                    mine, fetch(data, [batches[place] for place in mine], device), strict=True
                ):
                    pulse.progress()
                    seed_global_generators(place)  # should the score draw random numbers
                    scores = task.score(model, batch)
                    found.append(torch.stack([scores[name].detach().double() for name in names]))
                if found:
                    sums[mine] = torch.stack(found).cpu().numpy()
                    sums[mine] *= [[len(batches[place])] for place in mine]
        except Exception as error:
            failure = told(error)
            sums[:] = 0.0
    total = group.sum_metrics(np.append(sums.ravel(), float(bool(failure))))
    failed = total[-1] > 0.0
    columns = total[:-1].reshape(sums.shape).T
    means = {
        name: math.fsum(column) / length(data) if np.isfinite(column).all() else math.nan
        for name, column in zip(names, columns, strict=True)
    }
    if failed:
        return Score(math.inf, {}, True), failure
    try:
        means |= task.summary(means)
    except Exception as error:  # on every rank, for all have the same means
        return Score(math.inf, {}, True), told(error)
    return Score(finite_fitness(means.pop("loss")), means, False), failure


def seed_global_generators(seed: int) -> None:
    """Seed the generators that models, losses and Datasets draw from."""
    # torch.manual_seed keeps a stack trace for each kind of GPU that is not in use: 0.4 ms.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
