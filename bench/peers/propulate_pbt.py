"""Propulate on the epochs of a recipe: population based training out of its own operators.

    mpiexec -n 2 python bench/peers/propulate_pbt.py RECIPE --report FILE [--set KEY=VALUE]...

Propulate breeds settings; weights are no part of its individuals, and a loss function is not told
whose child it is given. One operator of ours between its selection and its mutation tells the child
where its parent's weights lie. Runs in the environment of bench/peers.py.
"""

import copy
import random
import tempfile
import time
from pathlib import Path

import torch
from bare_loop import Work, report
from individual import new_optimizer, optimizer_names, peer_arguments, ranges
from mpi4py import MPI
from propulate import Propulator
from propulate.population import Individual
from propulate.propagators import (
    Compose,
    Conditional,
    InitUniform,
    IntervalMutationNormal,
    PointMutation,
    Propagator,
    SelectMin,
    SelectUniform,
)

from esgd_hpc.recipe_file import load_recipe

RESAMPLE = 0.25
"""How often a setting is drawn anew, as in Ray Tune."""


class Inherit(Propagator):  # type: ignore[misc]
    """Make a child of the one selected parent that knows where the parent's weights are."""

    def __init__(self) -> None:
        super().__init__(1, 1)

    def __call__(self, parents: list[Individual]) -> Individual:
        child = copy.deepcopy(parents[0])
        child.inherits = weights_name(parents[0])
        return child


def weights_name(individual: Individual) -> str:
    """Return the file name of an individual's weights; a rank makes one a generation."""
    return f"{individual.rank}-{individual.generation}.pt"


def main() -> None:
    """Breed and train, and report on rank 0."""
    arguments = peer_arguments(__doc__)
    world = MPI.COMM_WORLD
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    mu = recipe.population.parents
    work = Work(recipe)
    torch.manual_seed(world.rank)
    stream = random.Random(world.rank)
    # Choices come first: setting one elsewhere leaves its old value in force (propulate 1.2.2).
    limits = {"optimizer": optimizer_names(recipe), **ranges(recipe)}
    busy = 0.0
    with tempfile.TemporaryDirectory() as own:
        folder = Path(world.bcast(own))

        def loss(individual: Individual) -> float:
            nonlocal busy
            started = time.perf_counter()
            model = work.model()
            inherits = getattr(individual, "inherits", None)
            if inherits is not None:
                model.load_state_dict(torch.load(folder / inherits))
            optimizer = new_optimizer(model, individual)
            for _ in range(recipe.sgd.epochs):
                found = work.train_epoch(model, optimizer)
            torch.save(model.state_dict(), folder / weights_name(individual))
            busy += time.perf_counter() - started
            return found

        propulator = Propulator(
            loss_fn=loss,
            propagator=Conditional(
                mu,
                Compose(
                    [
                        SelectMin(mu),
                        SelectUniform(1, rng=stream),
                        Inherit(),
                        PointMutation(limits, probability=RESAMPLE, rng=stream),
                        IntervalMutationNormal(limits, rng=stream),
                    ]
                ),
                InitUniform(limits, rng=stream),
            ),
            rng=stream,
            island_comm=world,
            propulate_comm=world,
            generations=recipe.generations * mu // world.size,
            checkpoint_path=folder,
        )
        propulator.propulate()
        found = world.gather((busy, work.num_epochs, work.best))
        world.barrier()
    if found is not None:
        seconds, epochs, best = zip(*found, strict=True)
        report(arguments.report, sum(seconds), sum(epochs), min(best))


if __name__ == "__main__":
    main()
