"""The group's one network, into which any individual's weights are loaded to be trained or scored.

Ranks of a group call the collective methods together. An exception on one of them becomes
`IndividualFailed` on all: a rank that failed goes on taking part with zeros and a flag that travels
at the end of the gradient.
"""

import logging
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from esgd_hpc import pulse, rng
from esgd_hpc.config import STEP_SETTINGS, Drawn, Recipe
from esgd_hpc.data.batches import Step, fetch, length, to_device, training_shards
from esgd_hpc.errors import InputError
from esgd_hpc.fitness import MetricSum, evaluate, seed_global_generators
from esgd_hpc.genome import Genome, weights_of
from esgd_hpc.learner import IndividualFailed, Score, told
from esgd_hpc.learner.gradient import GroupGradient, Sums
from esgd_hpc.learner.optimizer import Optimizer, State
from esgd_hpc.population import Draw, HyperparameterValue, Weights
from esgd_hpc.tasks.base import Data, Task

log = logging.getLogger(__name__)


class Group(MetricSum, Sums, Protocol):
    """The group's collectives, see `parallel.averaging.Averaging`."""

    def broadcast(self, flat: Tensor) -> None: ...


class NetworkLearner:
    """Trains and scores one individual at a time over the ranks of one group."""

    def __init__(self, task: Task, recipe: Recipe, group: Group, device: torch.device) -> None:
        self._task = task
        self._recipe = recipe
        self._group = group
        self._device = device
        torch.set_num_threads(recipe.topology.threads_per_rank)
        if task.shared:
            task.shared = {name: tensor.to(device) for name, tensor in task.shared.items()}  # type: ignore[union-attr]
        self._training = to_device(task.training, device)
        fitness_data = task.training if recipe.fitness.data == "training" else task.validation
        self._fitness_data = (
            self._training if fitness_data is task.training else to_device(fitness_data, device)
        )
        self.num_training_samples = length(self._training)
        length(self._fitness_data)
        self._seed(0, 0, 0, rng.Purpose.INITIAL_WEIGHTS)
        self._model = task.model().to(device)
        self._genome = Genome(self._model)
        self.layout = self._genome.layout
        self._parameters = list(self._genome.parameters.values())
        self._kept = torch.empty_like(self._genome.flat)
        self._kept_state: State | None = None
        self._score_names = ["loss", *sorted(self._score_one().keys() - {"loss"})]
        self._gradient = GroupGradient(self._parameters, group) if group.size > 1 else None

    # Individuals ----------------------------------------------------------------------------------

    def new_weights(self, uid: int) -> Weights:
        """Return the weights of a new random network, shape [P]; the same for the same uid."""
        self._seed(0, 0, uid, rng.Purpose.INITIAL_WEIGHTS)
        return weights_of(self._task.model().to(self._device))

    def load(self, weights: Weights | None) -> None:
        """Load an individual, given on the leader alone. Collective over the group."""
        with self._genome.overwriting() as flat:
            if weights is not None:
                flat.copy_(torch.from_numpy(weights))
            self._group.broadcast(flat)

    def weights(self) -> Weights:
        """Return a copy of the loaded individual's weights, shape [P]."""
        return self._genome.store()

    def snapshot(self, optimizer: Optimizer | None = None) -> None:
        """Keep the loaded weights and the optimizer's state, to come back to with `restore`.

        The weights are kept even if copying the state raises for want of memory.
        """
        self._genome.gather()
        self._kept.copy_(self._genome.flat)
        self._kept_state = None
        if optimizer is not None:
            self._kept_state = optimizer.state()

    def kept_weights(self) -> Weights:
        """Return a copy of the weights of the last snapshot, shape [P]."""
        host: Weights = self._kept.detach().cpu().numpy()
        return host.copy() if host.ctypes.data == self._kept.data_ptr() else host

    def restore(self, optimizer: Optimizer | None = None) -> None:
        """Bring weights, buffers and optimizer state back to those of the last snapshot."""
        with self._genome.overwriting() as flat:
            flat.copy_(self._kept)
        if optimizer is not None and self._kept_state is not None:
            optimizer.restore(self._kept_state)

    # Training -------------------------------------------------------------------------------------

    def optimizer(self, draw: Draw) -> Optimizer:
        """Return a new optimizer for the loaded individual, with the drawn hyper-parameters."""
        return Optimizer(self._parameters, draw)

    def configure(self, hyperparameters: Mapping[str, HyperparameterValue]) -> None:
        """Apply what was drawn for the task to the model."""
        own = {name: v for name, v in hyperparameters.items() if name not in STEP_SETTINGS}
        if own:
            self._task.configure(self._model, own)

    def train_epoch(
        self,
        optimizer: Optimizer,
        draw: Draw,
        generation: int,
        epoch: int,
        uid: int,
        failure: str = "",
    ) -> Score:
        """Train the loaded individual for one epoch, then score it. Collective over the group.

        `draw` has the batch size, and the learning rate of this epoch. A rank that could not even
        prepare comes with its `failure`. Raises IndividualFailed on every rank of the group if one
        of them failed.
        """
        stream = rng.stream(self._recipe.seed, generation, epoch, uid, rng.Purpose.SAMPLE_ORDER)
        self._seed(generation, epoch, uid, rng.Purpose.DROPOUT, self._group.rank)
        self._model.train()
        steps: Sequence[Step] = [Step(None, 0.0)]  # where this fails, the first step tells it
        batches: Iterator[Any] = iter(())
        if not failure:
            try:
                steps = self._task.training_steps(
                    draw.batch_size, stream, self._group.rank, self._group.size
                )
                batches = iter(self._task.training_batches(self._training, steps, self._device))
            except Exception as error:
                failure, steps = told(error), [Step(None, 0.0)]
        for step in steps:
            pulse.progress()
            if not failure:
                try:
                    self._gradient_of(next(batches), step.share)
                except Exception as error:
                    failure = told(error)
            if self._gradient:
                self._gradient.average(failure)
            elif failure:
                raise IndividualFailed(failure)
            try:
                self._update(optimizer, draw.learning_rate * step.learning_rate_scale)
            except Exception as error:
                failure = told(error)
        self._average_buffers()
        return self._score(failure)

    def _gradient_of(self, batch: Any, share: float) -> None:
        for parameter in self._parameters:
            parameter.grad = None
        loss = None
        if batch is not None:  # a rank may have no sample of an uneven last batch
            loss = self._task.loss(self._model, self._task.augment(batch))
            # Weighted by samples, so that an uneven last batch is averaged rightly.
            loss = loss if share == 1.0 else loss * share
        if self._gradient:
            self._gradient.compute(loss)
        elif loss is not None:
            loss.backward()

    def _update(self, optimizer: Optimizer, learning_rate: float) -> None:
        if self._recipe.sgd.gradient_clip > 0.0:
            nn.utils.clip_grad_norm_(self._parameters, self._recipe.sgd.gradient_clip)
        optimizer.step(learning_rate)

    def score(self, *, recalibrate: bool = False) -> Score:
        """Score the loaded individual, after estimating its BatchNorm statistics anew if asked.

        Collective over the group; raises IndividualFailed on every rank of it.
        """
        failure = ""
        if recalibrate:
            try:
                self._recalibrate()
            except Exception as error:
                failure = told(error)
        return self._score(failure)

    @property
    def has_final_scores(self) -> bool:
        """Whether the task has more to say of the last generation than `score` tells."""
        return self._task.test is not None or type(self._task).final_scores is not Task.final_scores

    def final_scores(self) -> dict[str, float]:
        """Return what the loaded individual scores on test data, and metrics of whole data sets.

        Collective over the group; the leader's has all of them. What fails is logged and absent.
        """
        found: dict[str, float] = {}
        if self._task.test is not None:
            score, failure = self._evaluate(self._task.test)
            if failure or score.failed:
                log.warning("scoring test data failed: %s", failure or "on another rank")
            else:
                found["test_loss"] = score.fitness
                found |= {f"test_{name}": value for name, value in score.metrics.items()}
        if self._group.rank == 0:
            try:
                self._model.eval()
                seed_global_generators(0)
                with torch.no_grad(), pulse.untimed("computing the task's final scores"):
                    found |= self._task.final_scores(self._model)
            except Exception as error:
                log.warning("the task's final_scores failed: %s", told(error))
        return found

    def recalibrated(self, weights: Weights) -> Weights:
        """Return the weights with BatchNorm statistics as `score(recalibrate=True)` saw them."""
        self._genome.load(weights)
        self._recalibrate()
        return self._genome.store()

    # Inside ---------------------------------------------------------------------------------------

    def _recalibrate(self) -> None:
        """Estimate BatchNorm statistics on training data; each rank alone, to the same bits."""
        norms = [m for m in self._model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not norms:
            return
        self._seed(0, 0, 0, rng.Purpose.RECALIBRATION)
        recipe = self._recipe
        order = rng.stream(recipe.seed, 0, 0, 0, rng.Purpose.RECALIBRATION).permutation(
            self.num_training_samples
        )
        batch_size = int(recipe.sgd.batch_size.low)
        shards = training_shards(order, batch_size, 0, 1)[: recipe.evolution.recalibration_batches]
        momenta = [norm.momentum for norm in norms]
        self._model.eval()
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the plain mean over all batches
                norm.train()
            with torch.no_grad():
                for batch in fetch(self._training, [i for i, _ in shards], self._device):
                    pulse.progress()
                    # Not the loss, in which the last individual's hyper-parameters may act.
                    self._task.score(self._model, batch)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum

    def _average_buffers(self) -> None:
        """Make the floating buffers (BatchNorm statistics) the mean over the group's."""
        if self._group.size == 1 or self.layout.num_parameters == self.layout.num_floats:
            return
        self._genome.gather()
        buffers = self._genome.floating_buffers()
        self._group.sum(buffers)
        buffers /= self._group.size

    def _evaluate(self, data: Data, failure: str = "") -> tuple[Score, str]:
        return evaluate(
            self._model,
            self._task,
            data,
            self._recipe.fitness.batch_size,
            self._score_names,
            self._group,
            self._device,
            failure,
        )

    def _score(self, failure: str) -> Score:
        score, failure = self._evaluate(self._fitness_data, failure)
        if score.failed:
            raise IndividualFailed(failure)
        return score

    def _score_one(self) -> dict[str, Tensor]:
        """Score the first sample alone; raises InputError for what is no score."""
        self._model.eval()
        seed_global_generators(0)
        with torch.no_grad():
            batch = next(iter(fetch(self._fitness_data, [np.arange(1)], self._device)))
            scores = dict(self._task.score(self._model, batch))
        if "loss" not in scores:
            raise InputError(
                f'task {self._recipe.task}: score() gives {", ".join(scores)}; it needs a "loss"'
            )
        for name, value in scores.items():
            if not isinstance(value, Tensor) or value.numel() != 1 or value.dim():
                raise InputError(
                    f"task {self._recipe.task}: score() gives {name} = {value!r}; it needs a tensor"
                    " of one number without dimensions, such as a mean"
                )
        return scores

    def check_hyperparameters(self, drawn: Mapping[str, Drawn]) -> None:
        """Raise InputError if what `configure` sets changes the score, and so what fitness is.

        Tries the lowest and the highest, or the first and the last, value of each.
        """
        ends: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        for name, values in drawn.items():
            if name not in STEP_SETTINGS:
                ends[0][name], ends[1][name] = values.ends()
        if not ends[0] or self._recipe.method == "single":
            return
        losses = []
        for hyperparameters in ends:
            self.configure(hyperparameters)
            losses.append(self._score_one()["loss"].item())
        if losses[0] != losses[1] and not all(map(math.isnan, losses)):
            raise InputError(
                f"task {self._recipe.task}: configure() with {ends[0]} or {ends[1]} changes the"
                f" loss that score() gives ({losses[0]:.6g} or {losses[1]:.6g}), and with it what"
                " fitness means; let them act in training alone"
            )

    def fingerprint(self) -> str:
        """Return what must be the same on every rank: data, model, and what a score consists of."""
        sums = []
        for data in (self._training, self._fitness_data):
            places = np.unique(np.array([0, length(data) // 2, length(data) - 1]))
            seed_global_generators(0)
            batch = next(iter(fetch(data, [places], torch.device("cpu"))))
            sums.append(f"{length(data)} samples, CRC {_crc(batch):08x}")
        layout = zlib.crc32(msgspec.json.encode(self.layout))
        return (
            f"training data of {sums[0]}; fitness data of {sums[1]}; model of {self.layout.size}"
            f" values, CRC {layout:08x}; score of {', '.join(self._score_names)}"
        )

    def _seed(
        self, generation: int, step: int, uid: int, purpose: rng.Purpose, lane: int = 0
    ) -> None:
        seed = rng.torch_seed(self._recipe.seed, generation, step, uid, purpose, lane)
        seed_global_generators(seed)


def _crc(batch: Any) -> int:
    """Return a checksum over all tensors in a batch of nested tuples, lists and mappings."""
    if isinstance(batch, Tensor):
        return zlib.crc32(batch.detach().cpu().contiguous().numpy().tobytes())
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, list | tuple):
        return zlib.crc32(b"".join(_crc(part).to_bytes(4, "little") for part in batch))
    return zlib.crc32(repr(batch).encode())
