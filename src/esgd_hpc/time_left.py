"""How long a run may still take, and how long its longest steps took last."""

import os
import time
from typing import TYPE_CHECKING

from esgd_hpc import pulse
from esgd_hpc.config import Recipe
from esgd_hpc.history import History
from esgd_hpc.launch import job_end
from esgd_hpc.parallel.agreement import on_root
from esgd_hpc.population import Population

if TYPE_CHECKING:
    from mpi4py import MPI


def seconds_left(recipe: Recipe, world: "MPI.Comm", started: float) -> float | None:
    """Return how long the run may take from now on, None where nothing says so. Collective.

    `started` is time.monotonic() at the start of the run.
    """

    def told() -> float | None:
        found = []
        if recipe.run.time_limit:
            found.append(60.0 * recipe.run.time_limit - (time.monotonic() - started))
        end = job_end(os.environ)
        if end is not None:
            found.append(end - time.time())
        return max(0.0, min(found)) if found else None

    return on_root(world, "looking for the time limit", told)


def last_seconds(
    population: Population, history: History, world: "MPI.Comm"
) -> tuple[float, float]:
    """Return what the slowest individual and the slowest child took last. Collective."""
    scored = max((i.seconds for i in population.individuals if i.origin == "offspring"), default=0)
    steps = history.steps  # on rank 0
    trained = max((s.seconds for s in steps if s.generation == steps[-1].generation), default=0)
    with pulse.waiting("waiting for rank 0 to tell of times"):
        found: tuple[float, float] = world.bcast((float(trained), float(scored)))
    return found
