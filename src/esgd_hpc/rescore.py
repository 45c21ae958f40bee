"""What weights score outside a run, and why that may differ from the fitness that was recorded.

One process without MPI scores them with the code of a run, as a group of one rank. How many ranks
share a score never changes it; another device, number of threads or version of torch may.
"""

import math
from dataclasses import dataclass

import torch

from esgd_hpc.checkpoint.reader import Checkpoint
from esgd_hpc.config import Recipe, short
from esgd_hpc.data.store import read
from esgd_hpc.device import choose_device, device_name
from esgd_hpc.errors import EsgdError, InputError, RunError
from esgd_hpc.learner import IndividualFailed, Score
from esgd_hpc.learner.network import NetworkLearner
from esgd_hpc.parallel.averaging.single import SingleAveraging
from esgd_hpc.population import Weights
from esgd_hpc.provenance import provenance
from esgd_hpc.recipe_file import recipe_from
from esgd_hpc.tasks import load_task, put_data, read_data

_COMPARED = (
    *("host", "device", "python", "torch", "numpy"),
    *("esgd-hpc", "esgd-hpc commit", "commit"),
)
"""Provenance that may change a score."""


@dataclass(frozen=True)
class Rescorer:
    """The task of a checkpoint, to score its weights again. Make one with `open_rescorer`."""

    checkpoint: Checkpoint
    recipe: Recipe
    device: torch.device
    learner: NetworkLearner

    def score(self, weights: Weights) -> tuple[Score, str]:
        """Return the score of the weights, shape [P], and what the task raised, "" if nothing."""
        self.learner.load(weights)
        try:
            return self.learner.score(), ""
        except IndividualFailed as error:
            return Score(math.inf, {}, True), str(error)

    def recalibrated(self, weights: Weights) -> Weights:
        """Return the weights, shape [P], with the BatchNorm statistics that a child would have.

        Raises RunError where the task's code raises.
        """
        try:
            return self.learner.recalibrated(weights)
        except Exception as error:  # the user's code can raise anything
            raise _failed(self.recipe, "estimating BatchNorm statistics", error) from error

    def likely_reasons(self) -> list[str]:
        """Return why a score may differ from the one that the run recorded, a line each."""
        made_by = self.checkpoint.provenance
        here = {**provenance(), "device": device_name(self.device)}
        lines = [
            f"{name}: {short(made_by[name])} in the run, {short(here[name])} here"
            for name in _COMPARED
            if made_by.get(name, here[name]) != here[name]
        ]
        changed = sorted({change.key for change in self.checkpoint.history.changes})
        if changed:
            lines.append(f"recipe: changed during the run: {short(', '.join(changed))}")
        return [
            *lines,
            "job: an earlier one of this run may have scored it, with other versions, devices or"
            " topology.threads_per_rank",
            "task: its code or data may be others now, or its score not deterministic",
        ]


def open_rescorer(checkpoint: Checkpoint) -> Rescorer:
    """Load the task that the checkpoint's recipe names and build its network.

    Raises InputError where the task cannot be loaded or its network is not that of the checkpoint,
    RunError where its code raises.
    """
    recipe = recipe_from(checkpoint.recipe, source=f"the recipe in {checkpoint.path}")
    device = choose_device(recipe.topology, 0, or_cpu=True)
    task = load_task(recipe.task, recipe.task_options)
    put_data(task, read_data(task, lambda stored: torch.from_numpy(read(stored))))
    try:
        learner = NetworkLearner(task, recipe, SingleAveraging(), device)
    except EsgdError:
        raise
    except Exception as error:  # the user's code can raise anything
        raise _failed(recipe, "building its model and data", error) from error
    size = checkpoint.layout.size
    if learner.layout != checkpoint.layout:
        raise InputError(
            f'task = "{recipe.task}": its model differs from the one in {checkpoint.path}'
            f" ({learner.layout.size} values instead of {size}, or other tensors);"
            " use the task as it was in the run"
        )
    return Rescorer(checkpoint, recipe, device, learner)


def _failed(recipe: Recipe, doing: str, error: Exception) -> RunError:
    return RunError(f'task = "{recipe.task}": {doing}: {type(error).__name__}: {error}')
