"""Speech: networks of the paper's sizes, frames seen as they should be, and means over frames."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from esgd_hpc.data.batches import fetch, fixed_batches, length
from esgd_hpc.data.speech_store import FrameStatistics, SpeechWriter, open_speech
from esgd_hpc.data.store import read, writing
from esgd_hpc.errors import InputError
from esgd_hpc.fitness import evaluate
from esgd_hpc.models.speech import DNN, BidirectionalLSTM
from esgd_hpc.parallel.averaging.single import SingleAveraging
from esgd_hpc.recipe_file import load_recipe
from esgd_hpc.tasks import load_task, put_data, read_data
from esgd_hpc.tasks.utterances import SpeechTask
from esgd_hpc.tasks.windows import cut_into_segments, segment_frames, splice

Array = npt.NDArray[Any]
Utterances = dict[str, list[Array]]

STATES, WIDTH, IVECTOR = 6, 4, 3


# Networks -----------------------------------------------------------------------------------------


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_dnn_of_bn50_has_the_papers_layers() -> None:
    model = load_task("bn50", {"path": "nowhere"}).model()
    first, middle, last, output = (
        *(360 * 1024 + 1024, 4 * (1024 * 1024 + 1024)),
        *(1024 * 512 + 512, 512 * 5000 + 5000),
    )
    assert num_parameters(model) == first + middle + last + output == 7_657_864
    assert model(torch.zeros(2, 360)).shape == (2, 5000)


def test_the_lstm_of_swb300_has_the_papers_layers() -> None:
    model = load_task("swb300", {"path": "nowhere"}).model()
    # A direction: four gates of 512, with weights of the input and of the last output, two biases.
    first = 2 * 4 * 512 * (140 + 512 + 2)
    others = 3 * 2 * 4 * 512 * (1024 + 512 + 2)
    linear = 1024 * 256 + 256 + 256 * 32_000 + 32_000
    assert num_parameters(model) == first + others + linear == 30_064_128
    assert model(torch.zeros(1, 21, 140)).shape == (1, 21, 32_000)


def test_lower_layers_have_relu_units_and_upper_ones_sigmoid() -> None:
    model = DNN(3, [8, 8, 8, 8], num_relu=2, states=5)
    inputs = torch.randn(50, 3)
    units = inputs
    for place, layer in enumerate(model.hidden):
        sums = layer(units)
        units = sums.clamp(min=0.0) if place < 2 else 1.0 / (1.0 + torch.exp(-sums))
    assert torch.allclose(model(inputs), model.output(units), atol=1e-6)
    assert all(not layer.bias.any() for layer in (*model.hidden, model.output))


def test_the_lstm_sees_both_directions_and_its_bottleneck_is_linear() -> None:
    model = BidirectionalLSTM(3, cells=4, layers=2, bottleneck=2, states=5)
    inputs = torch.randn(1, 6, 3, requires_grad=True)
    model(inputs)[0, 3].sum().backward()
    assert inputs.grad is not None
    assert inputs.grad[0].abs().sum(dim=1).gt(0.0).all()
    assert [name for name, _ in model.named_children()] == ["lstm", "bottleneck", "output"]


# What a network sees ------------------------------------------------------------------------------

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def bounds_of(lengths: list[int]) -> Array:
    ends = np.cumsum(lengths)
    return np.stack([ends - lengths, ends], axis=1).astype(np.int64)


@given(lengths=LENGTHS, context=st.integers(0, 5))
def test_windows_repeat_the_ends_of_their_utterance(lengths: list[int], context: int) -> None:
    bounds = bounds_of(lengths)
    features = torch.arange(2 * sum(lengths)).view(-1, 2)
    frames = torch.randperm(len(features))
    found = splice(features, torch.from_numpy(bounds), frames, context)
    for window, frame in zip(found, frames.tolist(), strict=True):
        first, end = next((f, e) for f, e in bounds.tolist() if f <= frame < e)
        expected: list[int] = []
        for neighbour in range(frame - context, frame + context + 1):
            expected += features[min(max(neighbour, first), end - 1)].tolist()
        assert window.tolist() == expected


@given(lengths=LENGTHS, size=st.integers(1, 7))
def test_segments_have_each_frame_once(lengths: list[int], size: int) -> None:
    bounds = bounds_of(lengths)
    starts, skips, num_new = cut_into_segments(bounds, size)
    assert len(starts) == sum(-(-length // size) for length in lengths)
    frames, is_new, which = segment_frames(
        torch.from_numpy(bounds), torch.from_numpy(starts), torch.from_numpy(skips), size
    )
    assert frames[is_new].tolist() == list(range(sum(lengths)))
    assert is_new.sum(dim=1).tolist() == num_new.tolist()
    for segment, utterance in zip(frames, which.tolist(), strict=True):
        first, end = bounds[utterance].tolist()
        assert first <= int(segment[0])
        assert int(segment[-1]) < end
        expected = min(size, end - first)
        assert len(set(segment.tolist())) == expected  # shifted back, not cut or padded


# Tasks --------------------------------------------------------------------------------------------


LENGTHS_OF = {"train": [30, 3, 21, 50], "validation": [25, 8], "test": [9]}


def write_speech(
    folder: Path,
    name: str,
    *,
    ivectors: bool,
    states: int = STATES,
    splits: Sequence[str] = ("train", "validation", "test"),
) -> dict[str, list[Array]]:
    """Write a prepared file; return the frames of each utterance, and labels behind them."""
    random = np.random.default_rng(5)
    written: dict[str, list[Array]] = {}
    with writing(folder / f"{name}.h5", name) as writer:
        speech = SpeechWriter(writer, states)
        for split in splits:
            for number, frames in enumerate(LENGTHS_OF[split]):
                features = random.normal(size=(frames, WIDTH)).astype(np.float32)
                labels = random.integers(0, STATES, frames)
                ivector = random.normal(size=IVECTOR).astype(np.float32) if ivectors else None
                speech.add(split, f"{split}{number}", features, labels, ivector)
                written.setdefault(split, []).append(
                    features if ivector is None else np.hstack([features, [ivector] * frames])
                )
                written.setdefault(f"{split} labels", []).append(labels)
        speech.finish()
    return written


OPTIONS: Mapping[str, dict[str, Any]] = {
    "bn50": {"context": 1, "hidden": [5, 4], "relu_layers": 1},
    "swb300": {"cells": 3, "layers": 1, "bottleneck": 2, "segment": 7},
}


def loaded(name: str, folder: Path, **options: Any) -> tuple[SpeechTask, nn.Module]:
    task = load_task(name, {"path": str(folder), **OPTIONS[name], **options})
    assert isinstance(task, SpeechTask)
    put_data(task, read_data(task, lambda stored: torch.from_numpy(read(stored))))
    torch.manual_seed(0)
    return task, task.model().eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("speech")


@pytest.fixture(scope="module")
def utterances(folder: Path) -> dict[str, dict[str, list[Array]]]:
    return {name: write_speech(folder, name, ivectors=name == "swb300") for name in OPTIONS}


def plain_scores(name: str, model: nn.Module, written: list[Array], labels: list[Array]) -> Array:
    """Return loss and frame error over all frames, each utterance seen by itself."""
    losses: list[Tensor] = []
    wrong: list[Tensor] = []
    for frames, states in zip(written, labels, strict=True):
        if name == "bn50":
            padded = np.concatenate([frames[:1], frames, frames[-1:]])
            windows = np.concatenate([padded[:-2], padded[1:-1], padded[2:]], axis=1)
            logits = model(torch.from_numpy(windows))
        else:
            logits = torch.cat([*segment_logits(model, torch.from_numpy(frames).float(), 7)])
        targets = torch.from_numpy(states)
        losses.append(nn.functional.cross_entropy(logits, targets, reduction="none"))
        wrong.append(logits.argmax(dim=1) != targets)
    return np.array([torch.cat(losses).mean().item(), torch.cat(wrong).double().mean().item()])


def segment_logits(model: nn.Module, frames: Tensor, size: int) -> Iterator[Tensor]:
    """Yield logits of the frames that each segment adds, cut by hand."""
    count = len(frames)
    for first in range(0, count, size):
        if count < size:
            segment = torch.cat([frames, frames[-1:].expand(size - count, -1)])
            yield model(segment[None])[0, :count]
        else:
            start = min(first, count - size)
            yield model(frames[None, start : start + size])[0, first - start :]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_scores_are_means_over_frames(
    folder: Path, utterances: dict[str, dict[str, list[Array]]], name: str, split: str
) -> None:
    task, model = loaded(name, folder)
    data = {"train": task.training, "validation": task.validation, "test": task.test}[split]
    assert data is not None
    score, failure = evaluate(
        model, task, data, 4, ["loss", "frame_error"], SingleAveraging(), torch.device("cpu")
    )
    assert failure == ""
    written = utterances[name]
    with torch.no_grad():
        expected = plain_scores(name, model, written[split], written[f"{split} labels"])
    found = [score.fitness, score.metrics["frame_error"]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.usefixtures("utterances")
@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_of_all_batches_are_those_of_the_mean_over_frames(
    folder: Path, name: str
) -> None:
    task, model = loaded(name, folder)
    count = length(task.training)
    (whole,) = fetch(task.training, [np.arange(count)], torch.device("cpu"))
    loss = task.loss(model, whole)
    score = task.score(model, whole)
    assert loss.item() == pytest.approx(score["loss"].item())
    loss.backward()
    expected = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    indices = fixed_batches(count, 5)
    for batch, part in zip(
        fetch(task.training, indices, torch.device("cpu")), indices, strict=True
    ):
        (task.loss(model, batch) * (len(part) / count)).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)


@pytest.mark.parametrize("name", OPTIONS)
def test_log_likelihoods_are_posteriors_without_priors(
    folder: Path, utterances: dict[str, dict[str, list[Array]]], name: str
) -> None:
    task, model = loaded(name, folder)
    written = utterances[name]
    counts = np.bincount(np.concatenate(written["train labels"]), minlength=STATES)
    for split in ("validation", "test"):
        bounds = task.utterances(split)
        assert len(bounds) == len(written[split])
        for frames, (first, end) in zip(written[split], bounds, strict=True):
            found = task.log_likelihoods(model, split, first, end)
            assert found.shape == (len(frames), STATES)
            posteriors = np.exp(found) * counts / counts.sum()
            np.testing.assert_allclose(posteriors.sum(axis=1), 1.0, rtol=1e-4)
        last = torch.from_numpy(posteriors[-1:]).log()
        with torch.no_grad():
            states = torch.from_numpy(written[f"{split} labels"][-1][-1:])
            alone = torch.nn.functional.nll_loss(last, states).item()
            if name == "bn50":
                tail = torch.from_numpy(np.concatenate([frames[-2:], frames[-1:]]).reshape(1, -1))
                expected = nn.functional.cross_entropy(model(tail), states).item()
            else:
                *_, tail = segment_logits(model, torch.from_numpy(frames).float(), 7)
                expected = nn.functional.cross_entropy(tail[-1:], states).item()
        assert alone == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("utterances")
def test_fewer_frames_for_training(folder: Path) -> None:
    task, _ = loaded("bn50", folder, training_frames=31)
    assert length(task.training) == 31
    task, model = loaded("swb300", folder, training_frames=31)
    assert length(task.training) == 5
    batch = next(fetch(task.training, [np.arange(5)], torch.device("cpu")))
    assert batch is not None
    starts, skips = batch
    assert starts.tolist() == [0, 7, 14, 21, 23]
    assert skips.tolist() == [0, 0, 0, 0, 5]
    whole, whole_model = loaded("swb300", folder)
    (same,) = fetch(whole.training, [np.arange(5)], torch.device("cpu"))
    ratio = task.loss(model, batch) / whole.loss(whole_model, same)
    assert ratio.item() == pytest.approx((5 / 30) / (17 / 104))


PHONE_OF_STATE = np.array([0, 0, 0, 1, 1, 1])
BIGRAM = np.log(np.array([[0.3, 0.7], [0.6, 0.4], [0.5, 0.5]], dtype=np.float32))


def test_phone_error_rates_come_from_all_utterances(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rapidfuzz", reason="rapidfuzz is not installed")
    from esgd_hpc.tasks import utterances as module
    from esgd_hpc.tasks.phones import phone_error_rate

    random = np.random.default_rng(2)
    spoken: dict[str, list[list[int]]] = {"validation": [[0, 1], [1], [0, 1, 0]], "test": [[1]]}
    with writing(folder / "festvox-ru.h5", "festvox-ru") as writer:
        speech = SpeechWriter(writer, STATES)
        for split, phones in {"train": [[0]], **spoken}.items():
            for number, own in enumerate(phones):
                frames = random.normal(size=(12, WIDTH)).astype(np.float32)
                labels = random.integers(0, STATES, 12)
                speech.add(split, f"{split}{number}", frames, labels, phones=own)
        speech.add_phones(["a", "b"], PHONE_OF_STATE, BIGRAM)
        speech.finish()
    options = {"path": str(folder), "hidden": [4]}
    task = load_task("festvox-ru", options)
    assert isinstance(task, SpeechTask)
    put_data(task, read_data(task, lambda stored: torch.from_numpy(read(stored))))
    model = task.model().eval()
    found = task.final_scores(model)
    for split, key in (("validation", "phone_error_rate"), ("test", "test_phone_error_rate")):
        likelihoods = [
            task.log_likelihoods(model, split, *bounds) for bounds in task.utterances(split)
        ]
        references = [np.array(own) for own in spoken[split]]
        rate = phone_error_rate(likelihoods, PHONE_OF_STATE, BIGRAM, references)
        assert found[key] == pytest.approx(rate)
    monkeypatch.setattr(module, "_VALUES_AT_ONCE", 13 * STATES)  # one utterance at a time
    assert task.final_scores(model) == pytest.approx(found)


# Options and files --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bn50", "swb300"])
def test_without_the_file_a_network_has_the_sizes_asked_for(tmp_path: Path, name: str) -> None:
    options = {"path": str(tmp_path), "states": 11, "features": 2, **OPTIONS[name]}
    model = load_task(name, options).model()
    assert model.output.out_features == 11  # type: ignore[union-attr]


@pytest.mark.usefixtures("utterances")
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bn50", {"states": 7}, "task_options.states = 7: .* has 6; leave the option out"),
        ("bn50", {"features": 7}, "task_options.features = 7: .* has 4"),
        ("bn50", {"context": -1}, "context = -1: expected a whole number from 0"),
        ("bn50", {"hidden": []}, "hidden = .*: expected a list of layer sizes"),
        ("bn50", {"hidden": [4, 0]}, r"hidden\.1 = 0: expected a whole number"),
        ("bn50", {"hidden": 5}, "hidden = 5: expected a list"),
        ("bn50", {"segment": 21}, "segment = 21: unknown to task .*context, hidden"),
        ("swb300", {"segment": 0}, "segment = 0: expected a whole number from 1"),
        ("swb300", {"training_frames": 1.5}, "training_frames = 1.5"),
    ],
)
def test_options_that_do_not_fit(
    folder: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_task(name, {"path": str(folder), **options})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"utterance_id": "two words"}, "no white space"),
        ({"utterance_id": "train0"}, "there twice"),
        ({"features": np.zeros((0, WIDTH))}, r"features of shape \[0, 4\]"),
        ({"features": np.full((3, WIDTH), np.inf)}, "features with NaN or infinity"),
        ({"features": np.zeros((3, 2))}, r"of \(2, 0\) numbers, \(4, 0\) before"),
        ({"ivector": np.zeros(2)}, r"of \(4, 2\) numbers, \(4, 0\) before"),
        ({"labels": np.zeros(2, dtype=int)}, r"labels of shape \[2\] for 3 frames"),
        ({"labels": np.zeros(3)}, "expected one whole number a frame"),
        ({"labels": np.array([0, -1, 0])}, "labels from -1 to 0; with 6 states"),
        ({"labels": np.array([0, 6, 0])}, "labels from 0 to 6; with 6 states"),
        ({"labels": None}, "only a test split may be without"),
        ({"phones": [1]}, "for some utterances of a split and not all"),
    ],
)
def test_utterances_that_cannot_be_trained_on(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    usual: dict[str, Any] = {
        "split": "train",
        "utterance_id": "train1",
        "features": np.zeros((3, WIDTH)),
        "labels": np.zeros(3, dtype=int),
    }
    with writing(tmp_path / "bn50.h5", "bn50") as writer:
        speech = SpeechWriter(writer, STATES)
        speech.add(**{**usual, "utterance_id": "train0"})
        with pytest.raises(InputError, match=message):
            speech.add(**{**usual, **change})
        with pytest.raises(InputError, match="no validation data: not a single utterance"):
            speech.finish()


def test_a_file_that_does_not_fit_together(tmp_path: Path) -> None:
    with writing(tmp_path / "bn50.h5", "bn50") as writer:
        for split in ("train", "validation"):
            writer.append(f"{split}/features", np.zeros((3, 2), dtype=np.float32))
            writer.append(f"{split}/labels", np.zeros(2, dtype=np.int32))
            writer.append(f"{split}/utterances", np.array([[0, 3]]))
        writer.append("log_priors", np.zeros(2, dtype=np.float32))
        writer.note(num_states=2)
    with pytest.raises(InputError, match="do not fit together; prepare it again"):
        open_speech("bn50", str(tmp_path))


@given(parts=st.lists(st.integers(0, 9), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_statistics_of_parts_are_those_of_the_whole(parts: list[int], seed: int) -> None:
    frames = np.random.default_rng(seed).normal(5.0, 3.0, (sum(parts) + 2, 3)).astype(np.float32)
    frames[:, 2] = 0.25  # never changes
    statistics = FrameStatistics()
    for first, end in itertools.pairwise([0, *np.cumsum(parts), len(frames)]):
        statistics.add(frames[first:end])
    exact = frames.astype(np.float64)
    expected = (exact - exact.mean(axis=0)) / np.where(exact.std(axis=0), exact.std(axis=0), 1.0)
    np.testing.assert_allclose(statistics.normalized(frames), expected, rtol=1e-4, atol=1e-5)


# Recipes ------------------------------------------------------------------------------------------


def test_recipes_have_the_numbers_of_tables_2_and_3() -> None:
    for name, rates in (
        ("bn50", ((1e-4, 2e-3), (1e-4, 1e-3))),
        ("swb300", ((1e-2, 3e-2), (5e-5, 1e-3))),
    ):
        recipe = load_recipe(name)
        population, evolution = recipe.population, recipe.evolution
        assert (population.parents, population.offspring) == (100, 400)
        assert (evolution.parents_per_child, recipe.sgd.epochs, evolution.steps) == (2, 1, 1)
        assert tuple(o.learning_rate.ends() for o in recipe.sgd.optimizers) == rates
        assert {o.learning_rate_decay for o in recipe.sgd.optimizers} == {0.9}
        assert recipe.sgd.optimizers[0].momentum.ends() == (0.1, 0.9)
        assert evolution.mutation_strength.ends() == (0.01, 0.01)
        assert recipe.num_elite == 60
        epochs = set()
        for variant in ("", "-single", "-population", "-anchor"):
            other = load_recipe(f"{name}{variant}")
            epochs.add(other.generations * other.sgd.epochs + other.fine_tuning.epochs)
        assert epochs == {20}
