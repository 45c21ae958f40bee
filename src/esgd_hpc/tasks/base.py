"""What ESGD needs to know of a problem: a model, training and validation data, and a loss.

A task of one's own is a factory, named in the recipe as `task = "package.module:factory"`, that
takes `[task_options]` as keyword arguments and returns a `Task`; `examples/` has a complete one.
Built-in tasks use the same interface.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from esgd_hpc.config import Drawn
from esgd_hpc.population import HyperparameterValue

Batch = Any
"""What the data gives: a tuple of tensors for in-memory data, else what the collation returns."""

Data = Sequence[Tensor] | Dataset[Any]
"""Tensors of equal first dimension, all in memory (fast), or any map-style torch Dataset."""


class Task:
    """A problem to train on. Subclass it and override `model` and, where need be, the rest.

    Every rank holds the same task. Losses and metrics are means over the samples of a batch, so
    that the group can weigh them by their numbers of samples.
    """

    hyperparameters: ClassVar[Mapping[str, Drawn]] = {}
    """Drawn anew for each individual and generation with its optimizer; the recipe's
    `[sgd.hyperparameters]` replaces ranges by name. `batch_size` and `weight_decay` take the place
    of the recipe's; all others reach the model through `configure`."""

    def __init__(self, *, training: Data, validation: Data) -> None:
        self.training = training
        self.validation = validation

    def model(self) -> nn.Module:
        """Return a new network, initialized from torch's global generator; float32 parameters."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the training loss, a scalar: the mean over the samples of the batch."""
        raise NotImplementedError

    def score(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return scalars that are means over the batch: "loss", and metrics to report beside it.

        The model is in evaluation mode and no gradient is recorded. "loss" is the fitness.
        """
        return {"loss": self.loss(model, batch)}

    def configure(
        self, model: nn.Module, hyperparameters: Mapping[str, HyperparameterValue]
    ) -> None:
        """Apply drawn hyper-parameters, such as dropout rates, to the model before it trains.

        They must not change what `score` gives: it is also called for individuals without any.
        """

    def augment(self, batch: Batch) -> Batch:
        """Return the training batch changed at random, from torch's global generator.

        That generator, NumPy's and Python's are seeded for each individual, epoch and rank of the
        group, so that a Dataset may draw from them as well.
        """
        return batch


class ClassificationTask(Task):
    """A task whose batches are (inputs, class numbers): cross-entropy, and the error rate."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        return nn.functional.cross_entropy(model(inputs), targets)

    def score(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        inputs, targets = batch
        logits = model(inputs)
        wrong = (logits.argmax(dim=-1) != targets).to(torch.float32)
        return {
            "loss": nn.functional.cross_entropy(logits, targets),
            "error_rate": wrong.mean(),
        }
