"""Recipes: what is read, what is refused, and that nothing but InputError ever comes out."""

import datetime
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esgd_hpc.config import Choice, Range, Recipe, differences, recipe_data
from esgd_hpc.errors import InputError
from esgd_hpc.recipe_file import load_recipe, recipe_from, recipe_names, recipe_text

SGD = {"name": "sgd", "learning_rate": 0.1}


def data(**tables: Any) -> dict[str, Any]:
    """Return a valid recipe's data, with the tables given."""
    sgd = {"optimizers": [dict(SGD)], **tables.pop("sgd", {})}
    return {"task": "digits", "sgd": sgd, **tables}


def make(**tables: Any) -> Recipe:
    return recipe_from(data(**tables))


def refusal(**tables: Any) -> str:
    with pytest.raises(InputError) as caught:
        make(**tables)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Reading ------------------------------------------------------------------------------------------


def test_recipes_come_with_the_package() -> None:
    assert {"digits", "fashion", "fashion-resnet20"} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes_load_and_say_what_they_are_for(name: str) -> None:
    assert isinstance(load_recipe(name), Recipe)
    assert recipe_text(name).startswith("# ")


@pytest.mark.parametrize("name", recipe_names())
def test_packaged_recipes_survive_being_written(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe_from(recipe_data(recipe)) == recipe
    assert differences(recipe_data(recipe), recipe_data(recipe)) == []


def test_a_recipe_with_everything_in_it_survives_being_written() -> None:
    recipe = make(
        task_options={"a": [1, {"b": "text"}], "c": True, "d": 0.5},
        population={"initialization": "perturb", "initial_weights": "x.safetensors"},
        sgd={
            "batch_size": [32, 64],
            "hyperparameters": {
                "one": {"choice": ["a", 1, 0.5, True]},
                "two": [0.0, 1.0],
                "three": [1, 4],
                "four": 2,
                "five": "text",
                "six": False,
            },
        },
        evolution={"parents_per_child": [1, 2], "mutation_strength": [0.01, 0.02]},
        fine_tuning={"epochs": 2},
        topology={"ranks_per_group": 3},
        checkpoint={"every": 7},
    )
    again = recipe_from(recipe_data(recipe))
    assert again == recipe
    assert repr(again) == repr(recipe)


def test_numbers_ranges_and_choices_are_read_as_such() -> None:
    drawn = make(
        sgd={
            "hyperparameters": {
                "fixed": 0.5,
                "range": [0.25, 1],
                "whole": [1, 4],
                "choice": {"choice": ["a", 2]},
                "text": "b",
                "flag": True,
            }
        }
    ).sgd.hyperparameters
    assert drawn == {
        "fixed": Range(0.5),
        "range": Range(0.25, 1),
        "whole": Range(1, 4),
        "choice": Choice(["a", 2]),
        "text": Choice(["b"]),
        "flag": Choice([True]),
    }
    whole = {name for name, d in drawn.items() if isinstance(d, Range) and d.whole}
    assert whole == {"whole"}


def test_a_file_is_read_as_toml(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('task = "digits"\n[[sgd.optimizers]]\nname = "adam"\nlearning_rate = 1e-3\n')
    assert load_recipe(str(path)).sgd.optimizers[0].name == "adam"


def test_derived_numbers_are_those_of_the_paper() -> None:
    assert make(population={"parents": 100}).num_elite == 60
    assert make(population={"parents": 3}, evolution={"elite_fraction": 1.0}).num_elite == 3
    single = make(method="single", single={"learning_rate": 0.1}, population={"parents": 50})
    assert (single.num_parents, single.num_elite) == (1, 1)
    assert make(generations=4).last_generation == 4
    assert make(generations=4, fine_tuning={"epochs": 1}).last_generation == 5


# Overrides ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("seed=7", "seed", 7),
        (" seed = 7 ", "seed", 7),
        ("sgd.epochs=3", "sgd.epochs", 3),
        ("sgd.backoff_probability=0.7", "sgd.backoff_probability", 0.7),
        ("topology.deterministic=false", "topology.deterministic", False),
        ('method="sgd-only"', "method", "sgd-only"),
        ("method='sgd-only'", "method", "sgd-only"),
        ("evolution.parents_per_child=[1, 2]", "evolution.parents_per_child", [1, 2]),
        ("evolution.mutation_strength=[0.1, 0.2]", "evolution.mutation_strength", [0.1, 0.2]),
        ("sgd.optimizers.1.weight=0.25", "sgd.optimizers.1.weight", 0.25),
        ("sgd.optimizers.0.learning_rate=1e-2", "sgd.optimizers.0.learning_rate", 0.01),
        ("task_options.hidden=8", "task_options.hidden", 8),
        ("task_options.a.b=8", "task_options.a.b", 8),
        ("task_options={ x = [1], y = 'z' }", "task_options", {"x": [1], "y": "z"}),
        (
            "sgd.hyperparameters.rate={ choice = [1, 2] }",
            "sgd.hyperparameters.rate",
            {"choice": [1, 2]},
        ),
        (
            'sgd.optimizers.0={ name = "adam", learning_rate = 0.5 }',
            "sgd.optimizers.0.learning_rate",
            0.5,
        ),
        ("population={ parents = 3 }", "population.parents", 3),
    ],
)
def test_an_override_sets_its_key_to_a_toml_value(override: str, key: str, value: Any) -> None:
    found: Any = recipe_data(load_recipe("digits", [override]))
    for part in key.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]
    assert found == value
    assert type(found) is type(value)


def test_overrides_leave_other_keys_and_the_last_one_counts() -> None:
    changed = load_recipe("digits", ["seed=2", "sgd.epochs=3", "seed=4"])
    found = differences(recipe_data(load_recipe("digits")), recipe_data(changed))
    assert list(map(str, found)) == ["seed: 1 -> 4", "sgd.epochs: 1 -> 3"]


# Refusing -----------------------------------------------------------------------------------------


def test_an_unknown_hyperparameter_form_names_its_key() -> None:
    good = {f"number_{i}": i for i in range(10)}
    text = refusal(sgd={"hyperparameters": {**good, "rate": [3, 2]}})
    assert "sgd.hyperparameters.rate = [3, 2]" in text
    assert "low <= high" in text


@pytest.mark.parametrize(
    "hyperparameters",
    [
        {"batch_size": 0},
        {"batch_size": -4},
        {"batch_size": [0, 64]},
        {"batch_size": 0.5},
        {"batch_size": [32.0, 64.0]},
        {"batch_size": "many"},
        {"batch_size": {"choice": [32, "x"]}},
        {"batch_size": {"choice": [32, 0]}},
        {"weight_decay": -0.1},
        {"weight_decay": "much"},
        {"weight_decay": {"choice": [0.1, -1.0]}},
    ],
    ids=str,
)
def test_hyperparameters_that_replace_keys_of_the_recipe_keep_their_bounds(
    hyperparameters: dict[str, Any],
) -> None:
    (name,) = hyperparameters
    assert f"sgd.hyperparameters.{name}" in refusal(sgd={"hyperparameters": hyperparameters})


def test_single_with_nesterov_needs_momentum() -> None:
    text = refusal(method="single", single={"learning_rate": 0.1, "nesterov": True})
    assert "single.nesterov" in text
    assert "momentum" in text


def test_single_with_adam_has_no_momentum() -> None:
    single = {"learning_rate": 0.1, "optimizer": "adam", "momentum": 0.9}
    assert "single.momentum = 0.9" in refusal(method="single", single=single)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 10**400], ids=["nan", "inf", "-inf", "10**400"]
)
@pytest.mark.parametrize(
    "key",
    [
        "generations",
        "evolution.smoothing",
        "evolution.mutation_strength",
        "evolution.parents_per_child",
        "sgd.batch_size",
        "sgd.hyperparameters.rate",
        "fine_tuning.learning_rate",
        "population.perturbation_strength",
    ],
)
def test_numbers_that_are_not_finite_or_too_large_are_refused(key: str, value: float) -> None:
    nested: dict[str, Any] = data()
    *tables, last = key.split(".")
    place = nested
    for table in tables:
        place = place.setdefault(table, {})
    place[last] = value
    with pytest.raises(InputError) as caught:
        recipe_from(nested)
    assert key in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_for_single_are_finite(value: float) -> None:
    single = {"learning_rate": 0.1, "hyperparameters": {"rate": value}}
    assert "single.hyperparameters.rate" in refusal(method="single", single=single)


@pytest.mark.parametrize(
    "text",
    [
        "seed = " + "1" * 5000,
        "seed = " + "[" * 3000 + "]" * 3000,
        "a." * 3000 + "b = 1",
        "seed = 1\nseed = 2",
        "\N{BYTE ORDER MARK}seed = 1",
        "seed = 1979-05-27",
        "\0",
    ],
    ids=["digits", "brackets", "dots", "twice", "mark", "date", "zero byte"],
)
def test_no_text_of_a_file_raises_anything_else(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"bad\.toml"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    "value",
    ["1" * 5000, "[" * 3000 + "]" * 3000, "", "digits", "1 2", "nan nan", "{"],
    ids=["many digits", "brackets", "nothing", "word", "two numbers", "two nans", "open table"],
)
def test_no_value_of_an_override_raises_anything_else(value: str) -> None:
    with pytest.raises(InputError, match="--set seed="):
        load_recipe("digits", [f"seed={value}"])


@pytest.mark.parametrize(
    "name",
    ["", "no\0such", "x" * 5000, "nowhere/x.toml", "."],
    ids=["empty", "zero byte", "long", "no folder", "folder"],
)
def test_no_name_of_a_recipe_raises_anything_else(name: str) -> None:
    with pytest.raises(InputError, match="recipe "):
        load_recipe(name)


# Comparing ----------------------------------------------------------------------------------------


def differing(old: Recipe, new: Recipe) -> list[str]:
    return list(map(str, differences(recipe_data(old), recipe_data(new))))


def test_topology_and_checkpoint_do_not_make_another_recipe() -> None:
    other = make(topology={"ranks_per_group": 4}, checkpoint={"every": 3, "keep": 9})
    assert differing(make(), other) == []


def test_every_other_key_does() -> None:
    for key, old, new in (
        ("seed", {}, {"seed": 2}),
        ("population.parents", {}, {"population": {"parents": 9}}),
        ("sgd.optimizers", {}, {"sgd": {"optimizers": [dict(SGD), dict(SGD)]}}),
        ("sgd.batch_size", {}, {"sgd": {"batch_size": [1, 2]}}),
        ("task_options.a", {"task_options": {"a": 1}}, {"task_options": {"a": 2}}),
        ("task_options.a", {}, {"task_options": {"a": 2}}),
        ("task_options.a", {"task_options": {"a": 2}}, {}),
        ("task_options.topology", {}, {"task_options": {"topology": 2}}),
        ("fitness.data", {}, {"fitness": {"data": "training"}}),
        ("anchor.weights", {}, {"anchor": {"weights": "a.safetensors"}}),
    ):
        (found,) = differing(make(**old), make(**new))
        assert found.startswith(f"{key}: ")


@pytest.mark.parametrize(
    ("old", "new"),
    [([1, 3], [1.0, 3.0]), (1, True), ({"choice": [0, 1]}, {"choice": [False, True]})],
)
def test_whole_numbers_are_told_from_others_where_the_draw_is_another(old: Any, new: Any) -> None:
    def with_rate(value: Any) -> Recipe:
        return make(sgd={"hyperparameters": {"rate": value}})

    assert differing(with_rate(old), with_rate(new))
    assert with_rate(old) != with_rate(new)


# Anything at all ----------------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.sampled_from([2**31, 2**63, -(2**63), 2**64, 10**30, 10**400, -(10**400)])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["sgd", "adam", "esgd", "single", "perturb", "rank", "digits"])
    | st.just(datetime.date(1979, 5, 27))
    | st.just(datetime.datetime(1979, 5, 27, 7, 32, tzinfo=datetime.UTC))
    | st.just(datetime.time(7, 32))
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)


def _paths(value: Any, prefix: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the place of every table, list and leaf of a recipe's data."""
    found = [prefix] if prefix else []
    inside = dict(enumerate(value)) if isinstance(value, list) else value
    for name, inner in inside.items() if isinstance(inside, dict) else ():
        found += _paths(inner, (*prefix, name))
    return found


FULL = data(
    evolution={"parents_per_child": [1, 2]},
    sgd={"hyperparameters": {"rate": [0, 1], "kind": {"choice": ["a", 1]}}},
)
PLACES = sorted(_paths(recipe_data(recipe_from(FULL))), key=str)


@st.composite
def spoiled(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a whole recipe with some places replaced, removed, or given unknown neighbours."""
    nested = recipe_data(recipe_from(FULL))
    for path in draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=4)):
        *tables, last = path
        place: Any = nested
        for part in tables:
            try:
                place = place[part]
            except (KeyError, IndexError, TypeError):
                place = None
                break
        if isinstance(place, dict):
            action = draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"]))
            if action == "remove":
                place.pop(last, None)
            else:
                name = last if action == "replace" else draw(st.text(max_size=6))
                place[name] = draw(ANYTHING)
        elif isinstance(place, list) and isinstance(last, int) and last < len(place):
            place[last] = draw(ANYTHING)
    return nested


@settings(max_examples=400)
@given(spoiled() | st.dictionaries(st.text(max_size=6), ANYTHING, max_size=4))
def test_no_data_raises_anything_but_an_input_error(nested: dict[str, Any]) -> None:
    try:
        recipe = recipe_from(nested)
    except InputError:
        return
    written = recipe_data(recipe)
    if not recipe.task_options:  # dates and the like come back as text
        assert recipe_data(recipe_from(written)) == written
    assert differences(written, written) == []


# Recipes that extend others -----------------------------------------------------------------------


def test_a_recipe_extends_another(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(
        'task = "digits"\nseed = 5\n[sgd]\nepochs = 3\nbatch_size = 32\n'
        '[[sgd.optimizers]]\nname = "sgd"\nlearning_rate = 0.1\n'
    )
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "middle.toml").write_text('extends = "../base.toml"\n[sgd]\nepochs = 4\n')
    last = tmp_path / "last.toml"
    last.write_text(
        'extends = "deep/middle.toml"\ngenerations = 2\n'
        '[[sgd.optimizers]]\nname = "adam"\nlearning_rate = 0.01\n'
    )
    recipe = load_recipe(str(last), ["sgd.batch_size=8"])
    assert (recipe.seed, recipe.generations, recipe.sgd.epochs) == (5, 2, 4)
    assert [o.name for o in recipe.sgd.optimizers] == ["adam"]  # lists are replaced
    assert recipe.sgd.batch_size == Range(8)


def test_a_file_may_extend_a_packaged_recipe(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "digits"\nseed = 77\n')
    assert load_recipe(str(mine)) == load_recipe("digits", ["seed=77"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "mine.toml"', "in a circle"),
        ("extends = 3", "extends = 3: expected a recipe's name or file"),
        ('extends = "absent.toml"', "absent.toml: no such file"),
        ('extends = "digits"\nsgd = 3', "sgd = 3"),
    ],
)
def test_what_cannot_be_extended_is_told(tmp_path: Path, text: str, message: str) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(str(mine))
