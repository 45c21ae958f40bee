"""A group trains like plain PyTorch on the same global batches, however it averages."""

import threading
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from esgd_hpc import rng
from esgd_hpc.config import Recipe
from esgd_hpc.data.batches import training_shards
from esgd_hpc.learner import IndividualFailed, gradient
from esgd_hpc.learner.network import NetworkLearner
from esgd_hpc.learner.optimizer import Optimizer
from esgd_hpc.parallel.agreement import closed_together
from esgd_hpc.parallel.averaging import Averaging, resolve, start
from esgd_hpc.parallel.averaging.horovod import is_installed
from esgd_hpc.population import Draw
from esgd_hpc.recipe_file import recipe_from
from esgd_hpc.tasks.base import Batch, ClassificationTask

WORLD = MPI.COMM_WORLD
NUM_SAMPLES, NUM_INPUTS, NUM_CLASSES, BATCH = 50, 6, 3, 12  # batches of 12, 12, 12, 12 and 2
RECIPE: Recipe = recipe_from(
    {
        "task": "none",
        "seed": 5,
        "fitness": {"batch_size": 16},
        "sgd": {"optimizers": [{"name": "sgd", "learning_rate": 0.1}]},
    }
)
SGD = Draw(
    optimizer="sgd", learning_rate=0.1, momentum=0.9, nesterov=True, weight_decay=0.01,
    batch_size=BATCH,
)  # fmt: skip
ADAM = Draw(optimizer="adam", learning_rate=0.01, weight_decay=0.01, batch_size=BATCH)


class Tied(nn.Module):
    """The first and the last layer share one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(NUM_INPUTS, NUM_INPUTS)
        self.outer = nn.Linear(NUM_INPUTS, NUM_INPUTS)
        self.outer.weight = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.outer(torch.tanh(self.inner(x)))[:, :NUM_CLASSES]
        return out


class Unused(nn.Module):
    """One layer never gets a gradient; another only in batches with a rare kind of sample."""

    def __init__(self) -> None:
        super().__init__()
        self.common = nn.Linear(NUM_INPUTS, NUM_CLASSES)
        self.rare = nn.Linear(NUM_INPUTS, NUM_CLASSES)
        self.never = nn.Linear(NUM_INPUTS, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.common(x)
        rare = x[:, 0] > 1.2
        if rare.any():
            out = out + rare.unsqueeze(1) * self.rare(x)
        return out


class Moving(nn.Module):
    """Gives its parameters other memory in every forward pass, as cuDNN does for an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_INPUTS, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for parameter in self.parameters():
            parameter.data = parameter.data.clone()
        out: Tensor = self.layer(x)
        return out


class Frozen(nn.Module):
    """One layer in the middle does not train, and so has no gradient to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(NUM_INPUTS, 8)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.last = nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.tanh(self.frozen(torch.tanh(self.first(x)))))
        return out


class Recomputed(nn.Module):
    """Reentrant checkpoints give the layer its gradient in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(NUM_INPUTS, NUM_INPUTS)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            inner: Tensor = checkpoint(self.layer, x.requires_grad_(), use_reentrant=True)
            out: Tensor = checkpoint(self.layer, inner, use_reentrant=True)
        else:
            out = self.layer(self.layer(x))
        return out[:, :NUM_CLASSES]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(NUM_INPUTS, 8), nn.Tanh(), nn.Linear(8, NUM_CLASSES))


def batch_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(NUM_INPUTS, 8), nn.BatchNorm1d(8), nn.Linear(8, NUM_CLASSES))


MODELS = {
    "mlp": mlp,
    "tied": Tied,
    "unused": Unused,
    "batch_norm": batch_norm,
    "moving": Moving,
    "frozen": Frozen,
}


class SmallTask(ClassificationTask):
    """Noise to learn by heart, the same on every rank."""

    def __init__(self, kind: str, num_samples: int = NUM_SAMPLES) -> None:
        stream = torch.Generator().manual_seed(11)
        inputs = torch.randn(num_samples, NUM_INPUTS, generator=stream)
        targets = torch.randint(NUM_CLASSES, (num_samples,), generator=stream)
        super().__init__(training=(inputs, targets), validation=(inputs[:37], targets[:37]))
        self.kind = kind
        self.tensors = inputs, targets

    def model(self) -> nn.Module:
        return MODELS[self.kind]()


@pytest.fixture(params=["mpi", "torch", "horovod"])
def group(request: pytest.FixtureRequest) -> Iterator[Averaging]:
    if request.param == "horovod" and not is_installed():
        pytest.skip("Horovod is not installed; `cmake --workflow --preset test` builds it")
    with closed_together(start(request.param, WORLD, "cpu")) as averaging:
        yield averaging


def send_in_buckets(patch: pytest.MonkeyPatch) -> None:
    """Make small networks large: their gradient is sent in buckets of 7 during backward passes."""
    patch.setattr(gradient, "OVERLAP_FROM", 1)
    patch.setattr(gradient, "BUCKET", 7)


@pytest.fixture(params=["one_message", "buckets"])
def sending(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "buckets":
        send_in_buckets(monkeypatch)


def reference(task: SmallTask, weights: Tensor, draw: Draw, num_ranks: int) -> nn.Module:
    """Train two epochs as one process with plain PyTorch would, on the whole global batches.

    BatchNorm normalizes what a rank sees, so for it alone the batch is cut as the group cuts it and
    the running statistics of the parts are averaged after each epoch.
    """
    model = task.model()
    nn.utils.vector_to_parameters(weights.clone(), model.parameters())
    parts = num_ranks if task.kind == "batch_norm" else 1
    inputs, targets = task.tensors
    optimizer: torch.optim.Optimizer
    if draw.optimizer == "adam":
        optimizer = torch.optim.Adam(
            model.parameters(), draw.learning_rate, weight_decay=draw.weight_decay
        )
    else:
        optimizer = torch.optim.SGD(
            model.parameters(),
            draw.learning_rate,
            momentum=draw.momentum,
            nesterov=draw.nesterov,
            weight_decay=draw.weight_decay,
        )
    floating = [b for b in model.buffers() if b.is_floating_point()]
    for epoch in (1, 2):
        order = rng.stream(RECIPE.seed, 1, epoch, 7, rng.Purpose.SAMPLE_ORDER).permutation(
            len(inputs)
        )
        shards = [training_shards(order, draw.batch_size, r, parts) for r in range(parts)]
        statistics = [[b.clone() for b in floating] for _ in range(parts)]
        model.train()
        for step in range(len(shards[0])):
            optimizer.zero_grad()
            for part in range(parts):
                indices, total = shards[part][step]
                for buffer, own in zip(floating, statistics[part], strict=True):
                    buffer.copy_(own)
                if len(indices):
                    batch = (inputs[indices], targets[indices])
                    (task.loss(model, batch) * (len(indices) / total)).backward()
                for buffer, own in zip(floating, statistics[part], strict=True):
                    own.copy_(buffer)
            optimizer.step()
        for place, buffer in enumerate(floating):
            buffer.copy_(torch.stack([own[place] for own in statistics]).mean(dim=0))
    return model.eval()


@pytest.mark.usefixtures("sending")
@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("draw", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("kind", MODELS)
def test_a_group_trains_like_one_process(group: Averaging, kind: str, draw: Draw) -> None:
    # With three ranks a last batch of 2 leaves one rank without samples; BatchNorm needs two each.
    task = SmallTask(kind, NUM_SAMPLES if kind != "batch_norm" else 48)
    check_training(task, group, draw, torch.device("cpu"))


def check_training(task: SmallTask, group: Averaging, draw: Draw, device: torch.device) -> None:
    """Run the body of the test above on any device."""
    learner = NetworkLearner(task, RECIPE, group, device)
    for uid in (3, 7):  # the second has to replace all of the first
        learner.load(learner.new_weights(uid) if group.rank == 0 else None)
        learner.score()
    learner.load(learner.new_weights(7) if group.rank == 0 else None)
    start_weights = torch.from_numpy(learner.weights()[: learner.layout.num_parameters])
    optimizer = learner.optimizer(draw)
    for epoch in (1, 2):
        score = learner.train_epoch(optimizer, draw, 1, epoch, 7)
    found = learner.weights()

    model = reference(task, start_weights, draw, group.size)
    expected = nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    num_parameters = learner.layout.num_parameters
    np.testing.assert_allclose(found[:num_parameters], expected, rtol=2e-4, atol=2e-6)
    assert not np.allclose(found[:num_parameters], start_weights.numpy(), atol=1e-3)
    floating = [b.flatten() for b in model.buffers() if b.is_floating_point()]
    if floating:
        np.testing.assert_allclose(
            found[num_parameters : learner.layout.num_floats],
            torch.cat(floating).numpy(),
            rtol=2e-4,
            atol=2e-6,
        )
    with torch.no_grad():
        loss = task.loss(model, task.validation)
    assert score.fitness == pytest.approx(float(loss), rel=1e-4)
    # Replicas do not drift apart by one bit.
    for other in WORLD.allgather((found.tobytes(), score.fitness)):
        assert other == (found.tobytes(), score.fitness)


@pytest.mark.gpu
@pytest.mark.parallel(1, 2)
@pytest.mark.parametrize("kind", MODELS)
def test_a_group_trains_like_one_process_on_gpus(kind: str) -> None:
    device = torch.device("cuda", WORLD.rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    with closed_together(start(resolve("auto", "cuda"), WORLD, "cuda")) as group:
        check_training(SmallTask(kind, 48), group, SGD, device)


@pytest.mark.parallel(1, 2, 3, 4)
def test_scores_do_not_depend_on_the_number_of_ranks(group: Averaging) -> None:
    task = SmallTask("mlp")
    learner = NetworkLearner(task, RECIPE, group, torch.device("cpu"))
    learner.load(learner.new_weights(3) if group.rank == 0 else None)
    score = learner.score()
    with closed_together(start("mpi", MPI.COMM_SELF, "cpu")) as alone:
        single = NetworkLearner(task, RECIPE, alone, torch.device("cpu"))
        single.load(single.new_weights(3))
        assert single.score() == score


class Watched(SmallTask):
    """Calls `halfway` in each backward pass when the last layer has its gradients."""

    def __init__(self, halfway: Callable[[], None]) -> None:
        super().__init__("mlp")
        self.halfway = halfway

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        first, tanh, last = cast(nn.Sequential, model)
        hidden = tanh(first(batch[0]))
        if hidden.requires_grad:
            hidden.register_hook(lambda _: self.halfway())
        return nn.functional.cross_entropy(last(hidden), batch[1])


class Failing(Watched):
    """Fails on one rank, in one way, once it has been told to."""

    def __init__(self, how: str) -> None:
        super().__init__(self._halfway)
        self.how = how
        self.armed = False
        self.calls = 0

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        loss = super().loss(model, batch)
        if self.armed and WORLD.rank == WORLD.size - 1:
            self.calls += 1
            if self.how == "train" and self.calls == 2:
                raise RuntimeError("the loss broke")
        return loss * float("nan") if self.armed and self.how == "nan" else loss

    def _halfway(self) -> None:
        if self.armed and self.how == "backward" and self.calls == 2:
            raise RuntimeError("the backward pass broke")

    def score(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        if self.armed and self.how == "score" and WORLD.rank == 0:
            raise RuntimeError("the score broke")
        return dict(super().score(model, batch))


class FailingStep(Optimizer):
    """An optimizer that runs out of memory on the last rank, in its last step of an epoch."""

    steps = 0

    def step(self, learning_rate: float) -> None:
        self.steps += 1
        if self.steps == 5 and WORLD.rank == WORLD.size - 1:
            raise torch.OutOfMemoryError("no memory for the momentum")
        super().step(learning_rate)


@pytest.mark.usefixtures("sending")
@pytest.mark.parallel(1, 2, 3)
@pytest.mark.parametrize("how", ["train", "backward", "score", "step"])
def test_one_failing_rank_fails_the_individual_on_all(group: Averaging, how: str) -> None:
    task = Failing(how)
    learner = NetworkLearner(task, RECIPE, group, torch.device("cpu"))
    learner.load(learner.new_weights(1) if group.rank == 0 else None)
    before = learner.score()
    learner.snapshot()
    task.armed = True
    optimizer = learner.optimizer(SGD)
    if how == "step":
        optimizer = FailingStep(learner._parameters, SGD)
    with pytest.raises(IndividualFailed) as failed:
        learner.train_epoch(optimizer, SGD, 1, 1, 1)
    told = [text for text in WORLD.allgather(str(failed.value)) if text]
    assert len(told) == 1
    assert "broke" in told[0] or "no memory" in told[0]
    # The group is in step again: the next individual trains as if nothing had been.
    task.armed = False
    learner.restore()
    assert learner.score() == before
    learner.train_epoch(learner.optimizer(SGD), SGD, 1, 1, 1)


def trained(task: SmallTask, group: Averaging) -> npt.NDArray[np.float32]:
    """Return the weights after two epochs of a new learner, which takes the constants anew."""
    learner = NetworkLearner(task, RECIPE, group, torch.device("cpu"))
    learner.load(learner.new_weights(1) if group.rank == 0 else None)
    optimizer = learner.optimizer(SGD)
    for epoch in (1, 2):
        learner.train_epoch(optimizer, SGD, 1, epoch, 1)
    return learner.weights()


@pytest.mark.parallel(2, 3)
@pytest.mark.parametrize("kind", MODELS)
def test_buckets_sum_up_to_what_one_message_does(
    group: Averaging, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = SmallTask(kind, NUM_SAMPLES if kind != "batch_norm" else 48)
    in_one = trained(task, group)
    send_in_buckets(monkeypatch)
    in_buckets = trained(task, group)
    assert trained(task, group).tobytes() == in_buckets.tobytes()
    if group.size == 2:  # a + b is b + a, but three terms are rounded as they are ordered
        assert in_buckets.tobytes() == in_one.tobytes()
    np.testing.assert_allclose(in_buckets, in_one, rtol=1e-4, atol=1e-6)


@pytest.mark.parallel(2)
def test_mpi_without_threads_sums_buckets_when_they_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send_in_buckets(monkeypatch)
    with closed_together(start("mpi", WORLD, "cpu")) as group:
        beside = trained(SmallTask("mlp"), group)
    monkeypatch.setattr(MPI, "Query_thread", lambda: MPI.THREAD_FUNNELED)
    with closed_together(start("mpi", WORLD, "cpu")) as group:
        assert trained(SmallTask("mlp"), group).tobytes() == beside.tobytes()
        assert "sums" not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parallel(2)
def test_buckets_leave_during_the_backward_pass(
    group: Averaging, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_in_buckets(monkeypatch)
    begun: list[int] = []
    begun_in_the_middle: list[int] = []
    start_sum = group.start_sum

    def counted(flat: Tensor) -> Callable[[], None]:
        begun.append(flat.numel())
        return start_sum(flat)

    monkeypatch.setattr(group, "start_sum", counted)
    trained(Watched(lambda: begun_in_the_middle.append(len(begun))), group)
    # 27 parameters in the last layer, 83 in all; four counts and the failures at the end.
    step = [7] * 11 + [6, 5]
    assert begun == step * 10
    assert begun_in_the_middle == [3 + len(step) * n for n in range(10)]


@pytest.mark.parallel(2)
def test_a_gradient_that_grows_after_it_was_sent_is_refused(
    group: Averaging, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = SmallTask("mlp")
    monkeypatch.setattr(task, "model", Recomputed)
    trained(task, group)
    send_in_buckets(monkeypatch)
    with pytest.raises(IndividualFailed, match="use_reentrant=False"):
        trained(task, group)


@pytest.mark.parallel(1, 2)
def test_a_loss_that_is_not_a_number_is_an_infinite_fitness(group: Averaging) -> None:
    task = Failing("nan")
    learner = NetworkLearner(task, RECIPE, group, torch.device("cpu"))
    learner.load(learner.new_weights(1) if group.rank == 0 else None)
    task.armed = True
    assert learner.train_epoch(learner.optimizer(SGD), SGD, 1, 1, 1).fitness == float("inf")


@pytest.mark.parallel(2, 4)
def test_broadcast_brings_the_leaders_bits_to_all(group: Averaging) -> None:
    bits = np.random.default_rng(3).integers(0, 2**32, 1001, dtype=np.uint32)
    flat = torch.from_numpy(bits.view(np.float32).copy()) if group.rank == 0 else torch.zeros(1001)
    group.broadcast(flat)
    assert flat.numpy().tobytes() == bits.tobytes()
