"""What ESGD needs to know of a problem: a model, training and validation data, and a loss.

A task of one's own is a factory, named in the recipe as `task = "package.module:factory"`, that
takes `[task_options]` as keyword arguments and returns a `Task`; `examples/` has a complete one.
Built-in tasks use the same interface.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from esgd_hpc.config import Drawn
from esgd_hpc.data.batches import Batch, Data, Step, fetch, length, training_shards
from esgd_hpc.data.store import Stored
from esgd_hpc.population import HyperparameterValue

__all__ = ["Batch", "ClassificationTask", "Data", "Step", "Task"]


class Task:
    """A problem to train on. Subclass it and override `model` and, where need be, the rest.

    Every rank holds the same task. Losses and metrics are means over the samples of a batch, so
    that the group can weigh them by their numbers of samples.
    """

    hyperparameters: ClassVar[Mapping[str, Drawn]] = {}
    """Drawn anew for each individual and generation with its optimizer; the recipe's
    `[sgd.hyperparameters]` replaces ranges by name. `batch_size` and `weight_decay` take the place
    of the recipe's; all others reach the model through `configure`."""

    shared: Mapping[str, Tensor | Stored] = {}
    """What samples refer to beside their own tensors, such as the frames that windows are cut from.
    Datasets of a prepared file are tensors, on the device, before the task is used."""

    def __init__(self, *, training: Data, validation: Data, test: Data | None = None) -> None:
        """Take the data. `test` is scored once, after the last generation, and never before."""
        self.training = training
        self.validation = validation
        self.test = test

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

    def summary(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """Return metrics that follow from the means over all samples, such as a perplexity.

        `means` has what `score` gives, "loss" among it.
        """
        return {}

    def final_scores(self, model: nn.Module) -> Mapping[str, float]:
        """Return metrics that need whole data sets, such as a phone error rate after decoding.

        Called once for each individual of the last generation, in evaluation mode, without
        gradients. Names of metrics on test data begin with "test_".
        """
        return {}

    def training_steps(
        self, batch_size: int, stream: np.random.Generator, rank: int, size: int
    ) -> Sequence[Step]:
        """Return this rank's part of each step of an epoch; as many on every rank of the group.

        `stream` is the same on all of them. The parts of a global batch are the same samples
        together whatever the size of the group.
        """
        order = stream.permutation(length(self.training))
        shards = training_shards(order, batch_size, rank, size)
        return [Step(indices, len(indices) / total) for indices, total in shards]

    def training_batches(
        self, data: Data, steps: Sequence[Step], device: torch.device
    ) -> Iterator[Batch | None]:
        """Yield the batch of each step on the device, None for a share of 0.

        `data` is the training data, on the device where it is in memory.
        """
        return fetch(data, [step.samples for step in steps], device)

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
