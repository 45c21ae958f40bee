"""The yardstick: plain PyTorch that does the epochs and evaluations of a run, and nothing else.

One process of several that share the individuals; no MPI, no exchange, no back-off, no files.

    python bench/bare_loop.py RECIPE --share 0/2 [--set KEY=VALUE]...
"""

import argparse
import time

import torch
from torch import Tensor, nn

from esgd_hpc.data.store import read
from esgd_hpc.recipe_file import load_recipe
from esgd_hpc.tasks import load_task, put_data, read_data


def main() -> None:
    """Train this process's share of the individuals and print the seconds of the loop alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("--share", default="0/1", help="which part of how many, such as 0/2")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    arguments = parser.parse_args()
    part, parts = map(int, arguments.share.split("/"))
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    torch.set_num_threads(recipe.topology.threads_per_rank)
    torch.manual_seed(part)
    task = load_task(recipe.task, recipe.task_options)
    put_data(task, read_data(task, lambda stored: torch.from_numpy(read(stored))))
    training: tuple[Tensor, ...] = tuple(task.training)  # type: ignore[arg-type]
    validation: tuple[Tensor, ...] = tuple(task.validation)  # type: ignore[arg-type]
    batch_size = int(recipe.sgd.batch_size.low)
    uids = range(part, recipe.population.parents, parts)
    num_children = len(range(part, recipe.population.offspring, parts))

    def evaluate(model: nn.Module) -> float:
        model.eval()
        total, count = 0.0, len(validation[0])
        with torch.no_grad():
            for start in range(0, count, recipe.fitness.batch_size):
                batch = tuple(t[start : start + recipe.fitness.batch_size] for t in validation)
                total += float(task.score(model, batch)["loss"]) * len(batch[0])
        return total / count

    started = time.perf_counter()
    models = {uid: task.model() for uid in uids}
    best = min(evaluate(model) for model in models.values())
    for _ in range(recipe.generations):
        for uid, model in models.items():
            optimizer: torch.optim.Optimizer
            if uid % 2:  # both of the recipe's optimizers get half of the individuals
                optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            else:
                optimizer = torch.optim.SGD(
                    model.parameters(), lr=0.05, momentum=0.5, nesterov=True
                )
            for _ in range(recipe.sgd.epochs):
                model.train()
                for indices in torch.randperm(len(training[0])).split(batch_size):
                    optimizer.zero_grad()
                    task.loss(model, tuple(t[indices] for t in training)).backward()
                    optimizer.step()
                best = min(best, evaluate(model))
        for child in range(num_children):
            evaluate(models[uids[child % len(uids)]])
    print(f"share {arguments.share}: {time.perf_counter() - started:.2f} s, best {best:.4f}")


if __name__ == "__main__":
    main()
