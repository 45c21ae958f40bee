"""The yardstick: plain PyTorch that does the epochs and scores of a run, and nothing else.

One process of several that share the individuals; no MPI, no exchange, no back-off, no files.

    python bench/bare_loop.py RECIPE --report FILE --share 0/2 [--epochs-only] [--set KEY=VALUE]...
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esgd_hpc.config import Recipe
from esgd_hpc.data.store import read
from esgd_hpc.recipe_file import load_recipe
from esgd_hpc.tasks import load_task, put_data, read_data


class Work:
    """The data of a recipe's task, and how networks are trained and scored on it by hand."""

    def __init__(self, recipe: Recipe) -> None:
        """Read the data of the recipe's task."""
        torch.set_num_threads(recipe.topology.threads_per_rank)
        self._task = load_task(recipe.task, recipe.task_options)
        put_data(self._task, read_data(self._task, lambda stored: torch.from_numpy(read(stored))))
        self._batch_size = int(recipe.sgd.batch_size.low)
        self._score_batch_size = recipe.fitness.batch_size
        self.num_epochs = 0
        self.best = math.inf
        """Smallest validation loss of any network so far."""

    def model(self) -> nn.Module:
        """Return a new network."""
        return self._task.model()

    def train_epoch(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
        """Train for one epoch and return the validation loss after it."""
        data: tuple[Tensor, ...] = tuple(self._task.training)  # type: ignore[arg-type]
        model.train()
        for places in torch.randperm(len(data[0])).split(self._batch_size):
            optimizer.zero_grad()
            batch = tuple(tensor.index_select(0, places) for tensor in data)
            self._task.loss(model, batch).backward()
            optimizer.step()
        self.num_epochs += 1
        return self.score(model)

    def score(self, model: nn.Module) -> float:
        """Return the loss on validation data."""
        loss = self._mean_loss(model, self._task.validation)
        self.best = min(self.best, loss)
        return loss

    def test(self, model: nn.Module) -> float:
        """Return the loss on test data."""
        return self._mean_loss(model, self._task.test)

    def _mean_loss(self, model: nn.Module, data: Any) -> float:
        model.eval()
        total, size = 0.0, len(data[0])
        with torch.no_grad():
            for start in range(0, size, self._score_batch_size):
                batch = tuple(tensor[start : start + self._score_batch_size] for tensor in data)
                total += float(self._task.score(model, batch)["loss"]) * len(batch[0])
        return total / size


def report(path: str, seconds: float, num_epochs: int, best: float) -> None:
    """Write what was done: seconds of training and scoring, and the smallest validation loss."""
    Path(path).write_text(json.dumps({"seconds": seconds, "epochs": num_epochs, "best": best}))


def main() -> None:
    """Do this process's share of the work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--report", required=True, help="where to write seconds and the best loss")
    parser.add_argument("--share", default="0/1", help="which part of how many, such as 0/2")
    parser.add_argument(
        "--epochs-only", action="store_true", help="no children, no first and no test scores"
    )
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    part, parts = map(int, arguments.share.split("/"))
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    work = Work(recipe)
    torch.manual_seed(part)
    num_children = len(range(part, recipe.population.offspring, parts))
    started = time.perf_counter()
    models = [work.model() for _ in range(part, recipe.population.parents, parts)]
    if not arguments.epochs_only:
        for model in models:
            work.score(model)
    for _ in range(recipe.generations):
        for place, model in enumerate(models):
            optimizer: torch.optim.Optimizer
            if place % 2:  # half of each share, for Adam takes longer
                optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            else:
                optimizer = torch.optim.SGD(
                    model.parameters(), lr=0.05, momentum=0.5, nesterov=True
                )
            for _ in range(recipe.sgd.epochs):
                work.train_epoch(model, optimizer)
        if not arguments.epochs_only:
            for child in range(recipe.evolution.steps * num_children):
                work.score(models[child % len(models)])
    if not arguments.epochs_only:
        for model in models:
            work.test(model)
    report(arguments.report, time.perf_counter() - started, work.num_epochs, work.best)


if __name__ == "__main__":
    main()
