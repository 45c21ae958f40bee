"""Draws lie where the recipe says, as often as it says, and have streams of their own."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from esgd_hpc.config import Choice, Drawn, Range, Recipe
from esgd_hpc.errors import InputError
from esgd_hpc.population import Draw, Individual
from esgd_hpc.recipe_file import recipe_from
from esgd_hpc.sgd.optimizers import draw_optimizer, drawn_hyperparameters, milestone_scale

MANY = 1500
UNLIKELY = 1e-4

SGD = {"name": "sgd", "learning_rate": [0.01, 0.1]}
ADAM = {"name": "adam", "learning_rate": [1e-4, 1e-3]}


def recipe(*optimizers: Mapping[str, Any], sgd: Mapping[str, Any] = {}, **top: Any) -> Recipe:
    return recipe_from(
        {"task": "digits", "sgd": {"optimizers": [*(optimizers or (SGD,))], **sgd}, **top}
    )


def draw(
    settings: Recipe, uid: int = 1, generation: int = 1, declared: Mapping[str, Drawn] = {}
) -> Draw:
    return draw_optimizer(
        settings,
        drawn_hyperparameters(settings, declared),
        generation,
        Individual(uid=uid, fitness=1.0),
    )


def draws(
    settings: Recipe, generation: int = 1, declared: Mapping[str, Drawn] = {}, count: int = MANY
) -> list[Draw]:
    return [draw(settings, uid, generation, declared) for uid in range(count)]


# Learning rate ------------------------------------------------------------------------------------


@given(
    st.floats(1e-8, 10.0),
    st.floats(1.0, 1e3),
    st.floats(0.5, 1.0),
    st.integers(1, 60),
    st.sampled_from(["uniform", "log-uniform"]),
)
def test_the_learning_rate_lies_in_its_range_annealed(
    low: float, ratio: float, gamma: float, generation: int, distribution: str
) -> None:
    settings = recipe(
        {
            "name": "sgd",
            "learning_rate": [low, low * ratio],
            "learning_rate_decay": gamma,
            "learning_rate_distribution": distribution,
        },
        generations=100,
    )
    factor = gamma**generation
    for uid in range(5):
        rate = draw(settings, uid, generation).learning_rate
        assert factor * low <= rate <= factor * (low * ratio)


@pytest.mark.parametrize("distribution", ["uniform", "log-uniform"])
@pytest.mark.parametrize("rate", [0.1, 0.3, 1e-3, 0.05])
def test_a_fixed_learning_rate_is_drawn_as_it_is(distribution: str, rate: float) -> None:
    settings = recipe(
        {"name": "sgd", "learning_rate": rate, "learning_rate_distribution": distribution}
    )
    assert draw(settings).learning_rate == rate


@pytest.mark.parametrize(
    ("distribution", "position"),
    [
        ("uniform", lambda rate: (rate - 0.01) / 0.09),
        ("log-uniform", lambda rate: np.log(rate / 0.01) / np.log(10.0)),
    ],
)
def test_the_learning_rate_is_spread_as_asked(
    distribution: str, position: Callable[[Any], Any]
) -> None:
    settings = recipe({**SGD, "learning_rate_distribution": distribution})
    rates = np.array([d.learning_rate for d in draws(settings)])
    assert stats.kstest(position(rates), "uniform").pvalue > UNLIKELY


def test_generation_k_draws_from_the_range_times_gamma_to_the_k() -> None:
    decaying = recipe({**SGD, "learning_rate_decay": 0.5})
    for generation in (1, 2, 3):
        rates = [d.learning_rate for d in draws(decaying, generation, count=400)]
        assert 0.5**generation * 0.01 <= min(rates) < 0.5**generation * 0.02
        assert 0.5**generation * 0.09 < max(rates) <= 0.5**generation * 0.1


# Optimizer and momentum ---------------------------------------------------------------------------


def assert_share(count: int, total: int, share: float) -> None:
    assert stats.binomtest(count, total, share).pvalue > UNLIKELY


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.2, 0.6), (3, 1)])
def test_optimizers_are_drawn_by_their_weights(weights: tuple[float, float]) -> None:
    settings = recipe({**SGD, "weight": weights[0]}, {**ADAM, "weight": weights[1]})
    counts = Counter(d.optimizer for d in draws(settings))
    assert_share(counts["sgd"], MANY, weights[0] / sum(weights))


@pytest.mark.parametrize("weights", [(0.0, 1.0), (1.0, 0.0)])
def test_an_optimizer_of_weight_0_is_never_drawn(weights: tuple[float, float]) -> None:
    settings = recipe({**SGD, "weight": weights[0]}, {**ADAM, "weight": weights[1]})
    expected = "sgd" if weights[0] else "adam"
    assert {d.optimizer for d in draws(settings, count=300)} == {expected}


def test_weights_of_any_size_are_shares_or_refused() -> None:
    try:
        settings = recipe({**SGD, "weight": 1e308}, {**ADAM, "weight": 1e308})
    except InputError:
        return
    assert {d.optimizer for d in draws(settings, count=50)} == {"sgd", "adam"}


def test_momentum_and_nesterov_are_drawn_by_their_probabilities() -> None:
    settings = recipe(
        {
            **SGD,
            "momentum": [0.1, 0.9],
            "momentum_probability": 0.8,
            "nesterov_probability": 0.25,
        }
    )
    drawn = draws(settings)
    momenta = [d.momentum for d in drawn if d.momentum]
    assert_share(len(momenta), MANY, 0.8)
    assert stats.kstest(momenta, stats.uniform(0.1, 0.8).cdf).pvalue > UNLIKELY
    assert_share(sum(d.nesterov for d in drawn), len(momenta), 0.25)
    assert all(d.momentum > 0.0 for d in drawn if d.nesterov)


def test_momentum_between_whole_bounds_is_no_whole_number() -> None:
    settings = recipe({**SGD, "momentum": [0, 1]})
    assert len({d.momentum for d in draws(settings, count=20)}) == 20


def test_adam_draws_neither_momentum_nor_nesterov() -> None:
    settings = recipe(
        {**SGD, "momentum": [0.1, 0.9], "nesterov_probability": 1.0},
        {**ADAM, "nesterov_probability": 1.0},
    )
    adam = [d for d in draws(settings, count=100) if d.optimizer == "adam"]
    assert adam
    assert not any(d.momentum or d.nesterov for d in adam)
    assert all(1e-4 <= d.learning_rate <= 1e-3 for d in adam)


# Other hyper-parameters ---------------------------------------------------------------------------


def test_whole_ranges_and_choices_include_both_ends_and_are_uniform() -> None:
    settings = recipe(
        sgd={
            "batch_size": [3, 6],
            "hyperparameters": {"kind": {"choice": ["a", 2, True]}, "rate": [0.25, 0.75]},
        }
    )
    drawn = draws(settings, declared={"kind": Choice(["z"]), "rate": Range(0.5)})
    sizes = Counter(d.batch_size for d in drawn)
    assert set(sizes) == {3, 4, 5, 6}
    assert stats.chisquare([*sizes.values()]).pvalue > UNLIKELY
    kinds = Counter(repr(d.hyperparameters["kind"]) for d in drawn)
    assert set(kinds) == {"'a'", "2", "True"}
    assert stats.chisquare([*kinds.values()]).pvalue > UNLIKELY
    rates = [float(d.hyperparameters["rate"]) for d in drawn]
    assert stats.kstest(rates, stats.uniform(0.25, 0.5).cdf).pvalue > UNLIKELY


def test_batch_size_and_weight_decay_that_the_task_declares_take_over() -> None:
    settings = recipe({**SGD, "weight_decay": 0.5}, sgd={"batch_size": 64})
    declared = {"batch_size": Range(7, 9), "weight_decay": Range(0.1, 0.2), "dropout": Range(0.3)}
    for d in draws(settings, declared=declared, count=50):
        assert d.batch_size in (7, 8, 9)
        assert 0.1 <= d.weight_decay <= 0.2
        assert d.hyperparameters == {"dropout": 0.3}
    assert (draw(settings).weight_decay, draw(settings).batch_size) == (0.5, 64)


def test_the_recipe_replaces_what_the_task_declares() -> None:
    settings = recipe(
        sgd={"batch_size": 64, "hyperparameters": {"dropout": 0.9, "batch_size": {"choice": [5]}}}
    )
    d = draw(settings, declared={"dropout": Range(0.1), "depth": Range(2)})
    assert d.hyperparameters == {"dropout": 0.9, "depth": 2}
    assert d.batch_size == 5


def test_a_hyperparameter_that_the_task_does_not_declare_is_refused() -> None:
    settings = recipe(sgd={"hyperparameters": {"dropuot": 0.5}})
    with pytest.raises(InputError, match=r"sgd\.hyperparameters\.dropuot = .*0\.5") as caught:
        drawn_hyperparameters(settings, {"dropout": Range(0.1)})
    for known in ("dropout", "batch_size", "weight_decay", "task digits"):
        assert known in str(caught.value)


# Independence -------------------------------------------------------------------------------------


def test_a_draw_depends_on_seed_generation_and_uid_alone() -> None:
    settings = recipe({**SGD, "momentum": [0.1, 0.9]})
    one = draw(settings, uid=4, generation=2)
    assert draw(settings, uid=4, generation=2) == one
    experienced = Individual(
        uid=4, fitness=0.1, born=1, draw=Draw(optimizer="adam", learning_rate=9)
    )
    assert draw_optimizer(settings, {}, 2, experienced) == one
    assert draw(settings, uid=5, generation=2) != one
    assert draw(settings, uid=4, generation=3) != one
    assert draw(recipe({**SGD, "momentum": [0.1, 0.9]}, seed=2), uid=4, generation=2) != one


def test_draws_of_neighbours_are_uncorrelated() -> None:
    settings = recipe({**SGD, "momentum": [0.1, 0.9]}, generations=MANY + 1)
    by_uid = [d.learning_rate for d in draws(settings)]
    by_generation = [draw(settings, 1, k).learning_rate for k in range(1, MANY + 1)]
    momenta = [d.momentum for d in draws(settings)]
    for first, second in (
        (by_uid[:-1], by_uid[1:]),
        (by_generation[:-1], by_generation[1:]),
        (by_uid[1:], by_generation[1:]),
        (by_uid, momenta),
    ):
        assert stats.pearsonr(first, second).pvalue > UNLIKELY


OTHERS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "momentum_probability": ({"momentum_probability": 0.0}, {}),
    "nesterov_probability": ({"nesterov_probability": 1.0}, {}),
    "momentum": ({"momentum": 0.0}, {}),
    "weight_decay": ({"weight_decay": 0.2}, {}),
    "learning_rate": ({"learning_rate": 0.5}, {}),
    "batch_size": ({}, {"batch_size": 64}),
    "alpha": ({}, {"hyperparameters": {"alpha": {"choice": [1]}}}),
}


@pytest.mark.parametrize("changed", OTHERS)
def test_one_setting_does_not_shift_the_draw_of_another(changed: str) -> None:
    optimizer = {**SGD, "momentum": [0.1, 0.9], "weight_decay": [0.0, 0.1]}
    more = {"batch_size": [32, 128]}
    declared: dict[str, Drawn] = {"alpha": Range(0.0, 1.0), "beta": Range(0.0, 1.0)}
    plain = recipe(optimizer, sgd=more)
    other = recipe({**optimizer, **OTHERS[changed][0]}, sgd={**more, **OTHERS[changed][1]})
    for uid in range(10):
        before = msgspec.to_builtins(draw(plain, uid, declared=declared))
        after = msgspec.to_builtins(draw(other, uid, declared=declared))
        before |= before.pop("hyperparameters")
        after |= after.pop("hyperparameters")
        ignored = {changed, "nesterov", *(["momentum"] if "momentum" in changed else [])}
        assert {n for n in before if before[n] != after[n]} <= ignored


# Methods ------------------------------------------------------------------------------------------


def test_sgd_only_draws_like_esgd() -> None:
    for uid in range(5):
        assert draw(recipe(method="sgd-only"), uid, 3) == draw(recipe(method="esgd"), uid, 3)


def test_population_keeps_its_first_draw_and_anneals_the_learning_rate() -> None:
    settings = recipe(
        {**SGD, "momentum": [0.1, 0.9], "learning_rate_decay": 0.8},
        {**ADAM, "learning_rate_decay": 0.8},
        method="population",
        generations=20,
        fine_tuning={"epochs": 2},
        sgd={"batch_size": [32, 64]},
    )
    for uid in range(10):
        first = draw(settings, uid, 1)
        for generation in (2, 5, 20, 21):
            later = draw(settings, uid, generation)
            assert later.learning_rate == pytest.approx(
                first.learning_rate * 0.8 ** (generation - 1), rel=1e-12
            )
            rate = {"learning_rate": first.learning_rate}
            assert msgspec.structs.replace(later, **rate) == first
    assert len({draw(settings, uid, 1).learning_rate for uid in range(10)}) == 10


def test_single_starts_with_its_settings_and_keeps_what_its_record_has() -> None:
    settings = recipe(
        method="single",
        single={
            "optimizer": "sgd",
            "learning_rate": 0.3,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 1e-4,
        },
        sgd={"batch_size": 32},
    )
    first = draw(settings, 0, 1)
    assert first == Draw(
        optimizer="sgd",
        learning_rate=0.3,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
        batch_size=32,
    )
    halved = msgspec.structs.replace(first, learning_rate=0.15)
    record = Individual(uid=0, fitness=1.0, draw=halved)
    assert draw_optimizer(settings, {}, 7, record) == halved


SINGLE = {"learning_rate": 0.3}


def test_single_has_the_values_that_its_settings_give_to_the_tasks_hyperparameters() -> None:
    values = {"dropout": 0.25, "layers": 2, "kind": "a", "flag": True}
    settings = recipe(method="single", single={**SINGLE, "hyperparameters": values})
    declared = {"dropout": Range(0.0, 1.0), "layers": Range(1, 4), "kind": Choice(["a", "b"])}
    d = draw(settings, declared={**declared, "flag": Choice([False]), "other": Range(0.5)})
    assert d.hyperparameters == values
    assert isinstance(d.hyperparameters["layers"], int), "a number of layers"
    with pytest.raises(InputError, match=r"single\.hyperparameters\.flag"):
        drawn_hyperparameters(settings, declared)


def test_batch_size_and_weight_decay_take_over_for_single_too_or_are_refused() -> None:
    values = {"batch_size": 16, "weight_decay": 0.5}
    try:
        settings = recipe(method="single", single={**SINGLE, "hyperparameters": values})
        d = draw(settings)
    except InputError:
        return
    assert (d.batch_size, d.weight_decay, d.hyperparameters) == (16, 0.5, {})


def test_fine_tuning_uses_its_own_optimizer_and_learning_rate() -> None:
    settings = recipe(
        {**SGD, "momentum": [0.5, 0.9], "weight_decay": [0.1, 0.2]},
        generations=5,
        fine_tuning={"epochs": 1, "optimizer": "adam", "learning_rate": 1e-5},
        sgd={"batch_size": [32, 64]},
    )
    last, tuning = draw(settings, 3, 5), draw(settings, 3, 6, {"dropout": Range(0.0, 1.0)})
    assert last.optimizer == "sgd"
    assert (tuning.optimizer, tuning.learning_rate) == ("adam", 1e-5)
    assert (tuning.momentum, tuning.nesterov) == (0.0, False)
    assert 0.1 <= tuning.weight_decay <= 0.2
    assert 32 <= tuning.batch_size <= 64
    assert 0.0 < float(tuning.hyperparameters["dropout"]) < 1.0


@pytest.mark.parametrize("gamma", [2.0, 1e300, 0.0])
def test_a_decay_gives_a_draw_in_every_generation_or_is_refused(gamma: float) -> None:
    try:
        settings = recipe({**SGD, "learning_rate_decay": gamma}, generations=2000)
    except InputError:
        return
    assert draw(settings, 1, 2000).learning_rate >= 0.0


# Schedules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["esgd", "sgd-only", "population", "single"])
def test_milestones_count_epochs_over_generations(method: str) -> None:
    """The image experiment: 0.1 for 80 epochs, 0.01 for another 41, then 0.001 (supplement C)."""
    single = {"learning_rate": 0.1}
    settings = recipe(
        sgd={"milestones": [80, 121], "epochs": 20}, generations=8, method=method, single=single
    )
    scales = [milestone_scale(settings, k, e) for k in range(1, 9) for e in range(1, 21)]
    assert scales == pytest.approx([1.0] * 80 + [0.1] * 41 + [0.01] * 39)


@pytest.mark.parametrize(("method", "scale"), [("esgd", 1.0), ("population", 0.1)])
def test_fine_tuning_has_milestones_only_where_it_goes_on_with_its_optimizer(
    method: str, scale: float
) -> None:
    settings = recipe(
        sgd={"milestones": [2]}, generations=3, method=method, fine_tuning={"epochs": 2}
    )
    assert milestone_scale(settings, 2, 1) == 1.0
    assert milestone_scale(settings, 3, 1) == pytest.approx(0.1)
    assert milestone_scale(settings, 4, 2) == pytest.approx(scale)


def test_patience_is_drawn_where_a_recipe_has_it() -> None:
    assert "patience" not in draw(recipe()).hyperparameters
    found = {d.hyperparameters["patience"] for d in draws(recipe(sgd={"patience": [3, 10]}))}
    assert found == set(range(3, 11))
    with_patience = draw(recipe(sgd={"patience": [3, 10]}))
    assert msgspec.structs.replace(with_patience, hyperparameters={}) == draw(recipe())
    declared = {"patience": Range(1, 2)}
    assert draw(recipe(), declared=declared).hyperparameters["patience"] in (1, 2)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("milestones", [5, 3], "ascending"),
        ("milestones", [0], "from 1"),
        ("milestone_factor", 2.0, "from 0"),
        ("patience", 1.5, "whole numbers"),
        ("patience", -1, "at least 0|from 0"),
        ("gradient_clip", -1.0, "at least 0"),
    ],
)
def test_schedules_that_cannot_be_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"sgd\.{key}.*({message})"):
        recipe(sgd={key: value})
