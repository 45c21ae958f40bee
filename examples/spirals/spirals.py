"""A task of one's own: tell the arms of noisy spirals apart; "spirals:task" in a recipe."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from esgd_hpc.config import Range
from esgd_hpc.tasks.base import ClassificationTask


class Points(Dataset[tuple[Tensor, int]]):
    """An ordinary map-style Dataset of (point float32 [2], number of its arm)."""

    def __init__(self, arms: int, points_per_arm: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.arm = torch.arange(arms).repeat(points_per_arm)
        radius = torch.rand(len(self.arm), generator=generator).sqrt()
        angle = 2 * math.pi * (1.25 * radius + self.arm / arms)
        noise = torch.randn(len(self.arm), 2, generator=generator)
        exact = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
        self.point = exact + 0.03 * noise

    def __len__(self) -> int:
        return len(self.arm)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.point[index], int(self.arm[index])


class Spirals(ClassificationTask):
    """Cross-entropy and the error rate come from ClassificationTask."""

    hyperparameters: ClassVar = {"dropout": Range(0.0, 0.2)}  # drawn with each optimizer

    def __init__(self, arms: int, points_per_arm: int) -> None:
        super().__init__(
            training=Points(arms, points_per_arm, seed=1),
            validation=Points(arms, points_per_arm, seed=2),
        )
        self.arms = arms

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
            nn.Dropout(), nn.Linear(64, self.arms),
        )  # fmt: skip

    def configure(self, model: nn.Module, hyperparameters: Mapping[str, Any]) -> None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = hyperparameters["dropout"]


def task(*, arms: int = 3, points_per_arm: int = 300) -> Spirals:
    """Return the task for the [task_options] of a recipe."""
    return Spirals(arms, points_per_arm)
