"""What both peers train: the network of the bare loop, with settings from the recipe's ranges.

As in a run, an individual has a new optimizer in each generation. What may be drawn: which one, its
learning rate, and the momentum of SGD.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from esgd_hpc.config import Recipe


def peer_arguments(description: str) -> argparse.Namespace:
    """Return what a peer's script was told: recipe, report and overrides."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("recipe")
    parser.add_argument("--report", required=True)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    return parser.parse_args()


def ranges(recipe: Recipe) -> dict[str, tuple[float, float]]:
    """Return the lowest and highest value of each setting that is a number, by its name."""
    found = {}
    for settings in recipe.sgd.optimizers:
        rate, momentum = settings.learning_rate, settings.momentum
        found[f"{settings.name}_learning_rate"] = (float(rate.low), float(rate.high))
        if settings.name == "sgd":
            found["momentum"] = (float(momentum.low), float(momentum.high))
    return found


def optimizer_names(recipe: Recipe) -> tuple[str, ...]:
    """Return the choices of the setting "optimizer"."""
    return tuple(settings.name for settings in recipe.sgd.optimizers)


def new_optimizer(model: nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Return the optimizer that the settings ask for."""
    if settings["optimizer"] == "adam":
        return torch.optim.Adam(model.parameters(), lr=settings["adam_learning_rate"])
    return torch.optim.SGD(
        model.parameters(),
        lr=settings["sgd_learning_rate"],
        momentum=settings["momentum"],
        nesterov=True,
    )
