"""The language model, its dropout and objectives, and how texts are cut into batches."""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from esgd_hpc.data.batches import Step
from esgd_hpc.data.store import writing
from esgd_hpc.errors import InputError
from esgd_hpc.fitness import evaluate
from esgd_hpc.genome import Genome
from esgd_hpc.models.language_model import DropoutRates, LanguageModel
from esgd_hpc.parallel.averaging.single import SingleAveraging
from esgd_hpc.tasks import load_task
from esgd_hpc.tasks.language import (
    OBJECTIVES,
    Carried,
    LanguageTask,
    TextBatch,
    columns_of,
    kjv,
    objective,
    ptb,
)

WORDS, SIZE = 30, 8
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)


def numbers(length: int) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
    return np.random.Generator(np.random.Philox(7)).integers(0, WORDS, length, dtype=np.int32)


def task_of(length: int = 500, *, bptt: int = 10, words: int = WORDS) -> LanguageTask:
    return LanguageTask(
        training=(torch.from_numpy(numbers(length)),),
        validation=columns_of(numbers(203), 10),
        test=columns_of(numbers(101), 1),
        words=words,
        size=SIZE,
        tied=True,
        bptt=bptt,
        training_tokens=0,
    )


def model_of(task: LanguageTask) -> LanguageModel:
    model = task.model()
    assert isinstance(model, LanguageModel)
    return model


def text_file(folder: Path) -> Path:
    file = folder / "kjv.h5"
    with writing(file, "kjv") as writer:
        for part, length in (("train", 500), ("validation", 101), ("test", 61)):
            writer.append(f"{part}/tokens", numbers(length))
        writer.note(vocabulary_size=WORDS)
    return file


# The network --------------------------------------------------------------------------------------


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_network_of_the_paper_has_ten_million_parameters() -> None:
    model = ptb(path="/nowhere").model()
    embedding, lstm, bias = 10_000 * 655, 4 * (2 * 655 * 655 + 2 * 655), 10_000
    assert num_parameters(model) == embedding + lstm + bias == 9_997_440
    assert num_parameters(kjv(path="/nowhere", tied=False).model()) == 9_997_440 + embedding


def test_the_network_is_torchs_lstm() -> None:
    """The same numbers out of nn.LSTM, with logits by hand."""
    model = LanguageModel(WORDS, SIZE).eval()
    lstm = nn.LSTM(SIZE, SIZE)
    parameters = (
        model.input_weight,
        model.recurrent_weight,
        model.input_bias,
        model.recurrent_bias,
    )
    with torch.no_grad():
        for own, theirs in zip(parameters, lstm.parameters(), strict=True):
            theirs.copy_(own)
        words = torch.randint(WORDS, (6, 3))
        expected, (hidden, cell) = lstm(model.embedding[words])
        logits, state = model(words)
        torch.testing.assert_close(logits, expected @ model.embedding.T + model.bias)
        torch.testing.assert_close(state, (hidden, cell))
        # The state is all that a text leaves behind.
        first, between = model(words[:4])
        second, _ = model(words[4:], between)
        torch.testing.assert_close(torch.cat([first, second]), logits)


def test_training_in_a_genome_keeps_parameters_in_its_vector() -> None:
    task = task_of()
    model = model_of(task)
    task.configure(model, {name: 0.3 for name in task.hyperparameters if name[-5:] != "model"})
    genome = Genome(model)
    before = genome.store()
    steps = task.training_steps(5, np.random.default_rng(1), 0, 1)
    for batch in task.training_batches(task.training, steps, CPU):
        gradients = torch.autograd.grad(task.loss(model, batch), list(model.parameters()))
        with torch.no_grad():
            torch._foreach_sub_(list(model.parameters()), gradients)
    after = genome.flat.numpy().copy()
    assert (after != before).mean() > 0.9
    for entry in genome.layout.entries:
        part = after[entry.offset : entry.offset + entry.size]
        assert (model.get_parameter(entry.name).detach().numpy().ravel() == part).all()


# Dropout ------------------------------------------------------------------------------------------


ALL = DropoutRates(embedding=0.3, input=0.3, weight=0.3, output=0.3)


@pytest.mark.parametrize("place", ALL._fields)
def test_each_dropout_acts_in_training_alone(place: str) -> None:
    model = LanguageModel(WORDS, SIZE)
    words = torch.randint(WORDS, (6, 3))
    plain, _ = model(words)
    model.dropout = DropoutRates()._replace(**{place: 0.5})
    assert not torch.equal(model(words)[0], plain)
    assert not torch.equal(model(words)[0], model(words)[0])  # new masks each time
    assert torch.equal(model(words, dropout=False)[0], plain)
    assert torch.equal(model.eval()(words)[0], plain)


def test_a_dropped_word_takes_no_part_anywhere() -> None:
    model = LanguageModel(WORDS, SIZE, tied=False)
    model.dropout = DropoutRates(embedding=0.5)
    model(torch.arange(WORDS).repeat(4)[:, None])[0].square().mean().backward()
    assert model.embedding.grad is not None
    dropped = (model.embedding.grad == 0.0).all(dim=1)
    assert 5 < int(dropped.sum()) < 25
    assert (model.embedding.grad[~dropped] != 0.0).all()


def test_masks_of_input_and_output_hold_for_a_whole_sequence() -> None:
    model = LanguageModel(WORDS, SIZE, tied=False)
    words = torch.arange(WORDS).view(6, 5)  # each but once: its gradient is that of one input
    model.dropout = DropoutRates(input=0.5)
    model(words)[0].square().mean().backward()
    assert model.embedding.grad is not None
    one_by_one = LanguageModel(SIZE, SIZE, tied=False)
    one_by_one.dropout = DropoutRates(output=0.5)
    with torch.no_grad():
        assert one_by_one.decoder is not None
        one_by_one.decoder.copy_(torch.eye(SIZE))  # logits are the outputs
        outputs, _ = one_by_one(torch.randint(SIZE, (6, 5)))
    for kept in (model.embedding.grad.view(6, 5, SIZE) != 0.0, outputs != 0.0):
        assert torch.equal(kept, kept[:1].expand_as(kept))
        assert not torch.equal(kept[0, 0], kept[0, 1])
        assert 0.2 < float(kept.float().mean()) < 0.8


def test_dropped_recurrent_weights_carry_no_gradient() -> None:
    model = LanguageModel(WORDS, SIZE)
    model.dropout = DropoutRates(weight=0.5)
    model(torch.randint(WORDS, (9, 4)))[0].square().mean().backward()
    assert model.recurrent_weight.grad is not None
    zeros = float((model.recurrent_weight.grad == 0.0).float().mean())
    assert 0.35 < zeros < 0.65


def test_what_cannot_be_a_rate_or_an_objective_is_refused() -> None:
    task = task_of()
    model = task.model()
    for value in (1.0, -0.1, "half", True):
        with pytest.raises(InputError, match=r"dropout_input = .* at least 0 and below 1"):
            task.configure(model, {"dropout_input": value})
    with pytest.raises(InputError, match="dropout_model = 'sibling': expected standard, frat"):
        task.configure(model, {"dropout_model": "sibling"})


# Objectives ---------------------------------------------------------------------------------------


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """By hand: the mean of log(sum(exp(z))) - z[target]."""
    chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return (logits.exp().sum(-1).log() - chosen).mean()


def difference(a: Tensor, b: Tensor) -> Tensor:
    return ((a - b) ** 2).sum() / a.numel()


EXPECTED: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "standard": lambda a, b, e, y: cross_entropy(a, y),
    "fraternal": lambda a, b, e, y: (
        0.5 * cross_entropy(a, y) + 0.5 * cross_entropy(b, y) + 0.15 * difference(a, b)
    ),
    "expectation-linear": lambda a, b, e, y: cross_entropy(a, y) + 0.25 * difference(a, e),
    "pi": lambda a, b, e, y: cross_entropy(a, y) + 0.15 * difference(a, b),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_follow_their_formulas_and_gradients_flow_through_both_passes(name: str) -> None:
    model = LanguageModel(WORDS, SIZE)
    model.dropout, model.objective = ALL, name
    inputs, targets = torch.randint(WORDS, (2, 6, 3))
    state = (torch.randn(1, 3, SIZE), torch.randn(1, 3, SIZE))

    def gradients(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters())))

    torch.manual_seed(5)
    loss, after = objective(model, inputs, targets, state)
    found = gradients(loss)
    torch.manual_seed(5)
    first, expected_state = model(inputs, state)
    second, _ = model(inputs, state)
    plain, _ = model(inputs, state, dropout=False)
    expected = EXPECTED[name](first, second, plain, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, gradients(expected))
    torch.testing.assert_close(after, expected_state)
    assert not torch.allclose(first, second)


# Batches ------------------------------------------------------------------------------------------


def epoch(task: LanguageTask, batch_size: int, rank: int, size: int) -> list[TextBatch | None]:
    steps = task.training_steps(batch_size, np.random.default_rng(3), rank, size)
    return list(task.training_batches(task.training, steps, CPU))


@given(st.integers(2, 400), st.integers(1, 40), st.integers(1, 5), st.integers(1, 40))
def test_ranks_share_the_same_global_batches(
    length: int, batch_size: int, size: int, bptt: int
) -> None:
    task = task_of(length, bptt=bptt)
    shares = [
        task.training_steps(batch_size, np.random.default_rng(3), rank, size)
        for rank in range(size)
    ]
    alone = task.training_steps(batch_size, np.random.default_rng(3), 0, 1)
    whole = epoch(task, batch_size, 0, 1)
    parts = [epoch(task, batch_size, rank, size) for rank in range(size)]
    for number, step in enumerate(alone):
        together = [steps[number] for steps in shares]
        assert sum(s.share for s in together) == pytest.approx(1.0)
        assert {s.learning_rate_scale for s in together} == {step.learning_rate_scale}
        batch, own = whole[number], [p[number] for p in parts]
        assert batch is not None
        assert [s.share == 0.0 for s in together] == [b is None for b in own]
        there = [b for b in own if b is not None]
        assert torch.equal(torch.cat([b.inputs for b in there], dim=1), batch.inputs)
        assert torch.equal(torch.cat([b.targets for b in there], dim=1), batch.targets)
    assert {len(p) for p in parts} == {len(alone)}


def test_an_epoch_is_every_column_once_in_order() -> None:
    task = task_of(500)
    batches = epoch(task, 7, 0, 1)
    text = torch.from_numpy(numbers(500)).long()
    column = 499 // 7
    inputs = torch.cat([b.inputs for b in batches if b is not None])
    targets = torch.cat([b.targets for b in batches if b is not None])
    for c in range(7):
        assert torch.equal(inputs[:, c], text[c * column : (c + 1) * column])
        assert torch.equal(targets[:, c], text[c * column + 1 : (c + 1) * column + 1])


def test_words_of_a_step_are_drawn_about_bptt_and_scale_the_learning_rate() -> None:
    steps = task_of(200_000, bptt=35).training_steps(2, np.random.default_rng(1), 0, 1)[:-1]
    lengths = np.array([step.samples.words for step in steps])
    assert all(s.learning_rate_scale == s.samples.words / 35 for s in steps)
    assert lengths.min() >= 5
    assert lengths.max() <= 45
    # The mean of 0.95 N(35, 5) + 0.05 N(17.5, 5).
    assert abs(lengths.mean() - (0.95 * 35 + 0.05 * 17.5)) < 0.6
    assert 0.02 < (lengths < 22).mean() < 0.08


def test_rare_words_become_unknown() -> None:
    (batch, *_) = epoch(task_of(500, words=10), 7, 0, 1)
    (whole, *_) = epoch(task_of(500), 7, 0, 1)
    assert batch is not None
    assert whole is not None
    assert torch.equal(batch.inputs, torch.where(whole.inputs < 10, whole.inputs, 0))


def test_the_state_goes_on_within_an_epoch_and_nowhere_else() -> None:
    task = task_of()
    model = model_of(task)
    steps = task.training_steps(5, np.random.default_rng(1), 0, 1)

    def losses(count: int) -> list[float]:
        batches = task.training_batches(task.training, steps, CPU)
        return [task.loss(model, next(batches)).item() for _ in range(count)]

    once = losses(4)
    abandoned = losses(2)  # an epoch that fails after two steps
    assert abandoned == once[:2]
    assert losses(4) == once
    # One pass over the four steps' words gives the same losses: the state was carried.
    batches = epoch_of(task, steps[:4])
    with torch.no_grad():
        logits, _ = model(torch.cat([b.inputs for b in batches]))
    start = 0
    for loss, batch in zip(once, batches, strict=True):
        stop = start + len(batch.inputs)
        expected = cross_entropy(logits[start:stop], batch.targets).item()
        assert loss == pytest.approx(expected, rel=1e-5)
        start = stop
    assert batches[0].carried.state is None  # no loss has set it in this epoch


def epoch_of(task: LanguageTask, steps: Sequence[Step]) -> list[TextBatch]:
    return [b for b in task.training_batches(task.training, steps, CPU) if b is not None]


@pytest.mark.parametrize("name", ["standard", "expectation-linear"])
def test_gradients_of_ranks_add_up_to_that_of_one(name: str) -> None:
    task = task_of()
    model = model_of(task)
    model.objective = name

    def gradient(size: int) -> Tensor:
        model.zero_grad()
        for rank in range(size):
            steps = task.training_steps(7, np.random.default_rng(3), rank, size)
            batches = task.training_batches(task.training, steps, CPU)
            for _, step in zip(range(3), steps, strict=False):
                batch = next(batches)
                if batch is not None:
                    (task.loss(model, batch) * step.share).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    alone = gradient(1)
    assert float(alone.norm()) > 0.0
    for size in (2, 3, 9):
        torch.testing.assert_close(gradient(size), alone, rtol=1e-4, atol=1e-6)


# Scores -------------------------------------------------------------------------------------------


@given(st.integers(2, 300), st.integers(1, 40))
def test_columns_have_every_word_but_the_first_as_target_once(length: int, columns: int) -> None:
    columns = min(columns, length - 1)
    text = numbers(length)
    table, weights = columns_of(text, columns)
    rows = [row[row >= 0].tolist() for row in table]
    assert [word for row in rows for word in row[1:]] == text[1:].tolist()
    assert all(a[-1] == b[0] for a, b in itertools.pairwise(rows))
    assert weights.numpy() == pytest.approx(np.full(columns, columns / (length - 1)))


@pytest.mark.parametrize("batch_size", [1, 3, 10])
@pytest.mark.parametrize("words_at_once", [1, 7, 1000])
def test_the_score_is_the_mean_over_all_words(
    batch_size: int, words_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "esgd_hpc.tasks.language._LOGITS_AT_ONCE", words_at_once * batch_size * WORDS
    )
    task = task_of()
    model = model_of(task)
    task.configure(model, {"dropout_input": 0.5, "dropout_model": "fraternal"})
    group = SingleAveraging()
    score, failure = evaluate(model, task, task.validation, batch_size, ["loss"], group, CPU)
    assert not failure
    losses: list[float] = []
    for row in columns_of(numbers(203), 10)[0]:
        words = row[row >= 0]
        with torch.no_grad():
            logits, _ = model.eval()(words[:-1, None])
        losses += [cross_entropy(z, y).item() for z, y in zip(logits[:, 0], words[1:], strict=True)]
    assert len(losses) == 202
    assert score.fitness == pytest.approx(math.fsum(losses) / 202, rel=1e-6)
    assert score.metrics["perplexity"] == pytest.approx(math.exp(score.fitness))


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity() -> None:
    task = task_of()
    model = model_of(task)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    for data in (task.validation, task.test):
        assert data is not None
        score, _ = evaluate(model, task, data, 512, ["loss"], SingleAveraging(), CPU)
        assert score.metrics["perplexity"] == pytest.approx(WORDS, rel=1e-6)


def test_a_hopeless_model_has_a_perplexity_too() -> None:
    assert math.isfinite(task_of().summary({"loss": 1e6})["perplexity"])


def test_scoring_training_text_is_refused() -> None:
    task = task_of()
    with pytest.raises(InputError, match=r"fitness\.data"):
        task.score(task.model(), (torch.zeros(5, dtype=torch.int32),))


# Options ------------------------------------------------------------------------------------------


def test_the_file_decides_vocabulary_and_data(tmp_path: Path) -> None:
    options = {"path": str(text_file(tmp_path)), "size": SIZE, "validation_tokens": 51}
    task, fewer = load_task("kjv", options), load_task("kjv", {**options, "vocabulary": 5})
    assert num_parameters(task.model()) == WORDS * (SIZE + 1) + 4 * (2 * SIZE * SIZE + 2 * SIZE)
    assert num_parameters(task.model()) - num_parameters(fewer.model()) == 25 * (SIZE + 1)
    for data, shape in ((task.validation, (10, 6)), (task.test, (1, 61))):
        assert isinstance(data, tuple)
        assert data[0].shape == shape
    assert isinstance(fewer.validation, tuple)
    assert int(fewer.validation[0].max()) == 4


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"vocabulary": 31}, r"task_options.vocabulary = 31: expected a whole number from 2 to 30"),
        ({"vocabulary": 1}, "task_options.vocabulary = 1"),
        ({"training_tokens": 501}, "training_tokens = 501: .* from 2 to 500"),
        ({"validation_columns": 101}, "validation_columns = 101: .* from 1 to 100"),
        ({"test_tokens": 3, "test_columns": 3}, "test_columns = 3: .* from 1 to 2"),
        ({"size": 0}, "size = 0"),
        ({"bptt": 0.5}, "bptt = 0.5"),
        ({"tied": "yes"}, "tied = 'yes'"),
        ({"columns": 3}, "task_options.columns = 3: unknown"),
    ],
)
def test_options_out_of_bounds_are_refused(
    options: dict[str, object], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=problem):
        load_task("kjv", {"path": str(text_file(tmp_path)), **options})


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with writing(tmp_path / "ptb.h5", "ptb") as writer:
        for part in ("train", "validation", "test"):
            writer.append(f"{part}/tokens", np.zeros((5, 2), dtype=np.int32))
        writer.note(vocabulary_size=10)
    with pytest.raises(InputError, match="holds no numbered words"):
        load_task("ptb", {"path": str(tmp_path)})


def test_a_batch_can_be_made_by_hand() -> None:
    """As the documentation of the batch says: two tables of words and an empty state."""
    task = task_of()
    model = task.model()
    inputs, targets = torch.randint(WORDS, (2, 6, 3))
    batch = TextBatch(inputs, targets, Carried())
    task.loss(model, batch).backward()
    assert batch.carried.state is not None
    assert not batch.carried.state[0].requires_grad
