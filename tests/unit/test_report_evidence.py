"""The paper's Table 1, Figures 1 and 2 and Table 6 say what the records of the given runs hold."""

import csv
import io
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from esgd_hpc.checkpoint.reader import Checkpoint, open_checkpoint
from esgd_hpc.history import History, RecipeChange
from esgd_hpc.population import Individual
from esgd_hpc.report import evidence_images, evidence_tables, page
from esgd_hpc.report.evidence import (
    Spread,
    TaskRuns,
    by_task,
    children_curve,
    epochs_so_far,
    fitness_curve,
    spread,
    top,
    winners,
)
from esgd_hpc.report.evidence_charts import Chart, figure_1, figure_2
from esgd_hpc.report.evidence_files import figure_files, file_names, table_files
from unit.test_checkpoint import write
from unit.test_report import HOSTILE, OLD_FORMAT, Page, make_run, only_initial

METHODS = ("single", "population", "sgd-only", "esgd")


# ---------------------------------------------------------------- runs to report on


def with_recipe(run: Checkpoint, **changes: Any) -> Checkpoint:
    """Return the run with other top-level keys in its recipe."""
    return msgspec.structs.replace(run, recipe=run.recipe | changes)


def with_scores(
    run: Checkpoint, *scores: float | tuple[float, Mapping[str, float]], seed: int = 1
) -> Checkpoint:
    """Return the run with individuals of these fitnesses and metrics at its end."""
    pairs = [score if isinstance(score, tuple) else (score, {}) for score in scores]
    individuals = [
        Individual(uid=uid, fitness=fitness, metrics=dict(metrics))
        for uid, (fitness, metrics) in enumerate(pairs)
    ]
    return with_recipe(msgspec.structs.replace(run, individuals=individuals), seed=seed)


def four_methods(generations: int = 2) -> dict[str, Checkpoint]:
    return {
        method: make_run(generations, overrides={"method": method})
        for method in reversed(METHODS)  # the table has an order of its own
    }


def only_task(runs: Mapping[str, Checkpoint]) -> TaskRuns:
    (task,) = by_task(runs)
    return task


def rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def cells(runs: Mapping[str, Checkpoint]) -> list[dict[str, str]]:
    """Return the rows of Table 1 as people see it."""
    table = evidence_tables.table_1(only_task(runs))
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


# ---------------------------------------------------------------- which runs go together


def test_methods_come_in_the_order_of_the_paper() -> None:
    task = only_task(four_methods())
    assert [series.method for series in task.series] == list(METHODS)
    assert [series.label for series in task.series] == [
        "single baseline", "population baseline", "ESGD w/o evolution", "ESGD",
    ]  # fmt: skip


def test_runs_that_differ_in_their_seeds_alone_are_one_row() -> None:
    run = make_run(2)
    seeds = {f"seed {n}": with_recipe(run, seed=n, topology={"ranks_per_group": n}) for n in (5, 6)}
    (series,) = only_task(seeds).series
    assert series.label == "ESGD"
    assert series.seeds == [5, 6]


CHANGED: dict[str, Callable[[Checkpoint], Checkpoint]] = {
    "the same seed": lambda run: run,
    "another recipe": lambda run: with_recipe(run, seed=2, generations=3),
    "another generation": lambda run: msgspec.structs.replace(
        with_recipe(run, seed=2), generation=1
    ),
    "changed on the way": lambda run: msgspec.structs.replace(
        with_recipe(run, seed=2),
        history=msgspec.structs.replace(
            run.history, changes=[RecipeChange(generation=1, key="sgd.epochs", old="1", new="2")]
        ),
    ),
}


@pytest.mark.parametrize("case", CHANGED)
def test_runs_that_differ_in_more_get_rows_of_their_own(case: str) -> None:
    run = make_run(2)
    task = only_task({"one": run, "two": CHANGED[case](run)})
    assert [series.label for series in task.series] == ["ESGD: one", "ESGD: two"]


def test_an_anchor_makes_another_method_and_each_seed_may_have_its_own() -> None:
    run = make_run(2)
    anchored = {
        f"anchored {n}": with_recipe(run, seed=n, anchor={"weights": f"{n}.safetensors"})
        for n in (1, 2)
    }
    task = only_task({"plain": run, **anchored})
    assert [(series.label, len(series.runs)) for series in task.series] == [
        ("ESGD", 1),
        ("ESGD with anchors", 2),
    ]


def test_tasks_and_kinds_of_fitness_are_kept_apart() -> None:
    run = make_run(1)
    others = {
        "b": with_recipe(run, task="other"),
        "c": with_recipe(run, fitness={"data": "training"}),
        "d": with_recipe(run, task=7, fitness=None),
    }
    tasks = by_task({"a": run, **others})
    assert [(t.task, t.data) for t in tasks] == [
        ("digits", "validation"), ("other", "validation"), ("digits", "training"), ("7", ""),
    ]  # fmt: skip
    headings = [evidence_tables.table_1(task).columns[3] for task in tasks]
    assert headings == ["validation loss", "validation loss", "training loss", "loss"]


# ---------------------------------------------------------------- Table 1


def test_the_best_is_the_fittest_and_the_range_is_over_the_top_15() -> None:
    scores = [(2.0 + n / 10, {"error_rate": 0.3 - n / 100}) for n in range(20)]
    run = with_scores(make_run(2), *reversed(scores))
    (series,) = only_task({"run": run}).series
    assert spread(series, "loss") == pytest.approx((2.0, 2.0, 3.4))
    # The fittest has the worst error rate; the best one is among the 15.
    assert spread(series, "error_rate") == pytest.approx((0.3, 0.16, 0.3))
    (row,) = cells({"run": run})
    assert row["validation loss"] == "2.000 [2.000, 3.400]"
    assert row["validation error rate (%)"] == "30.00 [16.00, 30.00]"


def test_the_champion_is_the_best_wherever_it_is() -> None:
    run = with_scores(make_run(2), *((2.0 + n, {"error_rate": 0.2 + n}) for n in range(15)))
    champion = Individual(uid=99, fitness=1.5, metrics={"error_rate": 0.1})
    run = msgspec.structs.replace(run, champion=champion)
    (series,) = only_task({"run": run}).series
    assert spread(series, "loss") == Spread(1.5, 1.5, 15.0)  # the 15th is the 14th of the others
    assert spread(series, "error_rate") == Spread(0.1, 0.1, 13.2)


def test_a_single_network_has_no_range_though_its_best_is_a_champion() -> None:
    run = with_scores(make_run(2), (2.0, {"error_rate": 0.2}))
    run = msgspec.structs.replace(run, champion=Individual(uid=99, fitness=1.5))
    assert [individual.uid for individual in top(run)] == [99]


def test_several_seeds_are_medians() -> None:
    run = make_run(2)
    seeds = {
        str(seed): with_scores(run, (best, {"perplexity": 10.0 * best}), best + width, seed=seed)
        for seed, best, width in ((1, 1.0, 0.5), (2, 3.0, 0.1), (3, 2.0, 2.0), (4, 2.5, 1.0))
    }
    (series,) = only_task(seeds).series
    assert spread(series, "loss") == pytest.approx((2.25, 2.25, (3.1 + 3.5) / 2))
    (row,) = cells(seeds)
    assert row["seeds"] == "n = 4: 1 to 4"
    assert row["validation perplexity"] == "22.50"
    assert "each number is the median" in " ".join(evidence_tables.notes_1(only_task(seeds)))


def test_individuals_that_failed_are_left_out() -> None:
    failed = math.inf, {"error_rate": math.nan}
    run = with_scores(make_run(2), failed, (2.0, {"error_rate": 0.5}), (3.0, {}))
    (series,) = only_task({"run": run}).series
    assert spread(series, "loss") == Spread(2.0, 2.0, 3.0)
    assert spread(series, "error_rate") == Spread(0.5, 0.5, 0.5)
    assert spread(only_task({"run": with_scores(run, failed)}).series[0], "loss") is None


def test_test_numbers_come_from_runs_that_are_finished() -> None:
    runs = four_methods()
    tested = {"error_rate": 0.25, "test_loss": 0.75, "test_error_rate": 0.5}
    runs["esgd"] = with_scores(runs["esgd"], (0.5, tested))
    runs["single"] = msgspec.structs.replace(
        with_scores(runs["single"], (0.5, {"error_rate": 0.5})), generation=1
    )
    by_method = {row["method"]: row for row in cells(runs)}
    assert list(by_method["ESGD"])[3:] == [
        "validation loss", "validation error rate (%)", "test loss", "test error rate (%)",
    ]  # fmt: skip
    assert by_method["ESGD"]["test loss"] == "0.7500"
    assert by_method["ESGD"]["test error rate (%)"] == "50.00"
    for method in ("single baseline", "population baseline"):
        assert by_method[method]["test loss"] == by_method[method]["test error rate (%)"] == "-"
    notes = " ".join(evidence_tables.notes_1(only_task(runs)))
    assert "Not at the end yet: single (generation 1 of 2)" in notes
    assert "No test data were scored in population and sgd-only." in notes


def test_one_run_that_is_not_finished_says_so() -> None:
    run = msgspec.structs.replace(make_run(2), generation=1)
    (row,) = cells({"run": run})
    assert row["test loss"] == "-"
    notes = " ".join(evidence_tables.notes_1(only_task({"run": run})))
    assert "Not at the end yet: run (generation 1 of 2)" in notes
    assert (
        "Not among the given runs: single baseline, population baseline and ESGD w/o evolution."
        in notes
    )
    assert "No test data" not in notes


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ((0.01423, 0.0176), ["0.01423", "0.01760"]),
        ((66.29, 67.273), ["66.29", "67.27"]),
        ((1234567.0, 2345678.0), ["1234567", "2345678"]),
        ((1e-9, 0.5), ["1e-09", "0.500000"]),
        ((1e300, 1.0), ["1e+300", "1.000"]),
        ((0.0, 0.0), ["0.000", "0.000"]),
    ],
)
def test_numbers_of_a_column_have_as_many_decimals(
    values: Sequence[float], shown: Sequence[str]
) -> None:
    run = make_run(1)
    runs = {
        method: with_recipe(with_scores(run, value), method=method)
        for method, value in zip(METHODS, values, strict=False)
    }
    assert [row["validation loss"] for row in cells(runs)] == shown


# ---------------------------------------------------------------- Figures 1 and 2


def test_figure_1_has_best_and_15th_of_each_generation() -> None:
    run = make_run(3, parents=18)
    ranked = [sorted(m.fitness for m in members) for members in run.history.survivors]
    curve = fitness_curve(only_task({"run": run}).series[0])
    assert curve.generation == [0, 1, 2, 3]
    assert curve.line == curve.low == [fitness[0] for fitness in ranked]
    assert curve.high == [fitness[14] for fitness in ranked]


def test_figures_of_several_seeds_are_medians() -> None:
    runs = {}
    for seed, factor in ((1, 1.0), (2, 4.0), (3, 2.0)):
        run = make_run(2)
        run.history.survivors[:] = [
            tuple(msgspec.structs.replace(m, fitness=m.fitness * factor) for m in members)
            for members in run.history.survivors
        ]
        run.history.rows[:] = [
            msgspec.structs.replace(row, elite_offspring_fraction=factor / 4)
            for row in run.history.rows
        ]
        runs[str(seed)] = with_recipe(run, seed=seed)
    (series,) = only_task(runs).series
    alone = fitness_curve(only_task({"3": runs["3"]}).series[0])
    assert fitness_curve(series) == alone
    assert children_curve(series)[1:] == ([0.5] * 2, [0.25] * 2, [1.0] * 2)


def test_the_share_of_children_ends_before_fine_tuning() -> None:
    run = make_run(4, overrides={"fine_tuning.epochs": 2})
    run = with_recipe(run, generations=3)
    curve = children_curve(only_task({"run": run}).series[0])
    assert curve.generation == [1, 2, 3]
    assert curve.line == [row.elite_offspring_fraction for row in run.history.rows[1:4]]
    shown = Page(page.render_page({"run": run}))
    assert shown.data[0]["children"]["generation"] == [1, 2, 3]


def drawn(runs: Mapping[str, Checkpoint]) -> tuple[Chart, Chart | None]:
    first = figure_1(only_task(runs))
    assert first is not None
    return first, figure_2(only_task(runs))


def test_the_axis_counts_generations_where_they_are_alike() -> None:
    chart, second = drawn(four_methods(3))
    assert second is not None
    assert chart.x_title == "generation (1 SGD epoch each)"
    assert [band.x for band in chart.bands] == [[0, 1, 2, 3]] * 4
    assert [band.method for band in second.bands] == ["esgd"]
    assert [band.label for band in chart.bands] == [
        "single baseline",
        "population baseline, all 6",
        "ESGD w/o evolution, all 6",
        "ESGD, all 6",
    ]


def test_the_axis_counts_epochs_where_generations_differ_in_them() -> None:
    runs = {"esgd": make_run(3), "single": with_epochs(make_run(1), 5)}
    runs["single"] = with_recipe(runs["single"], method="single")
    chart, _ = drawn(runs)
    assert chart.x_title == "SGD epochs per individual"
    assert {band.method: band.x for band in chart.bands} == {
        "single": [0, 5],
        "esgd": [0, 1, 2, 3],
    }
    assert [row["SGD epochs"] for row in cells(runs)] == ["5", "3"]
    notes = " ".join(evidence_tables.notes_1(only_task(runs)))
    assert "did not train for the same number of SGD epochs" in notes


def with_epochs(run: Checkpoint, *epochs: int) -> Checkpoint:
    """Return the run with so many SGD epochs in each generation; one individual had none."""
    steps = [
        msgspec.structs.replace(step, epochs=epochs[step.generation - 1] if step.uid else 0)
        for step in run.history.steps
    ]
    return msgspec.structs.replace(run, history=msgspec.structs.replace(run.history, steps=steps))


def test_epochs_are_those_that_were_trained() -> None:
    assert epochs_so_far(with_epochs(make_run(3), 4, 4, 2)) == [0, 4, 8, 10]
    chart, _ = drawn({"run": with_epochs(make_run(3), 4, 4, 2)})
    assert chart.x_title == "generation (4 SGD epochs each, 2 in the last)"
    assert epochs_so_far(open_checkpoint(OLD_FORMAT)) == [0, 1, 2]  # by its recipe


def test_early_generations_do_not_flatten_the_later_ones() -> None:
    run = make_run(8)
    best = [1e6, 5.0, *(1.0 - k / 100 for k in range(7))]
    run.history.survivors[:] = [
        tuple(msgspec.structs.replace(m, fitness=fitness + i) for i, m in enumerate(members))
        for fitness, members in zip(best, run.history.survivors, strict=True)
    ]
    chart, _ = drawn({"run": run})
    low, high = chart.y_range
    assert low < best[-1] < 6.0 < high < 7.0  # of generation 2: 1.0 to 6.0
    assert "What is above 6 at the start is left out" in chart.text


@pytest.mark.parametrize(("factor", "scale"), [(1.0, "linear"), (100.0, "log"), (1e18, "linear")])
def test_a_wide_range_is_on_a_logarithmic_scale(factor: float, scale: str) -> None:
    run = make_run(2)
    run.history.survivors[:] = [
        tuple(msgspec.structs.replace(m, fitness=1.0 + factor * i / 10) for i, m in enumerate(ms))
        for ms in run.history.survivors
    ]
    chart, _ = drawn({"run": run})
    assert chart.y_scale == scale
    assert (len(chart.y_ticks) > 2) == (scale == "log")
    assert evidence_images.image(chart, "png")


def test_the_page_draws_the_numbers_of_the_figures() -> None:
    runs = four_methods()
    shown = Page(page.render_page(runs)).numbers["tasks"]
    (numbers,) = shown
    for kind, chart in zip(("figure1", "figure2"), drawn(runs), strict=True):
        assert chart is not None
        assert [b["label"] for b in numbers[kind]["bands"]] == [b.label for b in chart.bands]
        for name in ("x", "line", "low", "high"):
            found = [band[name] for band in numbers[kind]["bands"]]
            assert found == [pytest.approx(getattr(band, name), rel=1e-6) for band in chart.bands]


# ---------------------------------------------------------------- Table 6


def test_table_6_has_the_optimizer_of_the_fittest_after_each_sgd_step() -> None:
    run = make_run(4)
    steps = run.history.steps
    expected = [
        min((s for s in steps if s.generation == k), key=lambda s: (s.fitness, s.uid))
        for k in range(1, 5)
    ]
    assert [winner.step for winner in winners(run)] == expected
    (table,) = evidence_tables.tables_6(only_task({"run": run}))
    names = {"sgd": "SGD", "adam": "Adam"}
    assert [row[:3] for row in table.rows] == [
        (str(s.generation), str(s.uid), names[s.draw.optimizer]) for s in expected
    ]
    for row, step in zip(table.rows, expected, strict=True):
        assert row[3].startswith(f"learning rate {step.draw.learning_rate:.3g}, ")
        assert ("; 1 of 1 epoch undone" in row[3]) == (step.back_offs == 1)
        assert row[4] == f"{step.fitness:.6g}"
    best = [row.best_uid for row in run.history.rows[1:]]
    parents = {birth.uid: birth.parents for birth in run.history.births}
    for row, uid, step in zip(table.rows, best, expected, strict=True):
        children = f"{uid}, child of {' and '.join(map(str, parents[uid]))}"
        assert row[5] == ("the same" if uid == step.uid else children)
    assert any(uid != step.uid for uid, step in zip(best, expected, strict=True))


def test_table_6_and_figure_2_are_about_esgd_alone() -> None:
    runs = four_methods()
    assert len(evidence_tables.tables_6(only_task(runs))) == 1
    del runs["esgd"]
    assert evidence_tables.tables_6(only_task(runs)) == []
    assert figure_2(only_task(runs)) is None
    notes = evidence_tables.notes_6(only_task(runs))
    assert notes == ["Figure 2 and Table 6 are about ESGD, and there is no such run."]
    assert notes[0] in Page(page.render_page(runs)).text


# ---------------------------------------------------------------- files


def test_the_files_of_two_tasks() -> None:
    runs = {
        "a": make_run(1),
        "b": with_recipe(make_run(1, overrides={"method": "single"}), task="my.module:factory"),
    }
    images = figure_files(by_task(runs))
    names = ("figure1-digits", "figure2-digits", "figure1-my.module-factory")
    assert list(images) == [f"figures/{name}.{end}" for name in names for end in ("png", "svg")]
    assert sorted(table_files(by_task(runs))) == [
        "tables/table1.csv", "tables/table1.md", "tables/table6.csv", "tables/table6.md",
    ]  # fmt: skip
    with Image.open(io.BytesIO(images["figures/figure1-digits.png"])) as image:
        assert image.size == (1120, 736)
    again = figure_files(by_task({"a": runs["a"]}))
    assert {path: images[path] for path in again} == again
    assert b"<dc:date>" not in images["figures/figure1-digits.svg"]


@given(st.lists(st.text(max_size=80), max_size=6))
def test_names_of_files_are_plain_and_different(tasks: list[str]) -> None:
    names = file_names([*tasks, "../../etc/x", "..", "A", "a", "a-2"])
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,70}", name) for name in names)
    assert not {".", ".."} & set(names)
    assert not [name for name in names if name.startswith((".", "-"))]
    assert len({name.lower() for name in names}) == len(names)


def test_table_1_for_programs() -> None:
    runs = {
        "x": with_scores(make_run(2), (1 / 3, {"error_rate": 0.1}), 2 / 3, seed=1),
        "y": with_scores(make_run(2), (1 / 7, {"error_rate": 0.2}), 2 / 3, seed=2),
        "single": with_scores(make_run(2, overrides={"method": "single"}), 0.5),
    }
    found = rows(table_files(by_task(runs))["tables/table1.csv"])
    assert [(row["method"], row["quantity"]) for row in found] == [
        ("single", "loss"), ("single", "error_rate"), ("esgd", "loss"), ("esgd", "error_rate"),
    ]  # fmt: skip
    assert found[2] | {"best": "", "low": ""} == {
        "task": "digits", "fitness_data": "validation", "method": "esgd", "runs": "x;y",
        "seeds": "1;2", "generation": "2", "finished": "true", "epochs": "2", "individuals": "2",
        "top": "2", "quantity": "loss", "best": "", "low": "", "high": repr(2 / 3),
    }  # fmt: skip
    assert float(found[2]["best"]) == float(found[2]["low"]) == (1 / 3 + 1 / 7) / 2
    assert [found[1][name] for name in ("best", "low", "high")] == ["", "", ""]


def test_table_6_for_programs() -> None:
    run = make_run(2)
    found = rows(table_files(by_task({"run": run}))["tables/table6.csv"])
    assert [row["generation"] for row in found] == ["1", "2"]
    for row, (step, of_generation) in zip(found, winners(run), strict=True):
        assert float(row["learning_rate"]) == step.draw.learning_rate
        assert float(row["fitness"]) == step.fitness
        assert msgspec.json.decode(row["hyperparameters"]) == step.draw.hyperparameters
        assert row["nesterov"] == "false"
        assert row["best_individual"] == str(of_generation.best_uid)


def test_the_markdown_tables() -> None:
    runs = {"run": with_scores(make_run(1), (0.25, {"error_rate": 0.125}), 0.5)}
    files = table_files(by_task(runs))
    lines = files["tables/table1.md"].decode().splitlines()
    place = lines.index("| method | seeds | SGD epochs | validation loss |"
                        " validation error rate (%) |")  # fmt: skip
    assert lines[place + 1 : place + 3] == [
        "| :-- | :-- | --: | --: | --: |",
        "| ESGD | 1 | 1 | 0.2500 [0.2500, 0.5000] | 12.50 |",
    ]
    assert lines[2] == "## digits"
    assert (
        "Table 6 (digits): optimizers of the best individual of run"
        in files["tables/table6.md"].decode().splitlines()
    )


def test_texts_of_files_stay_texts_in_markdown_and_images() -> None:
    hostile = HOSTILE + " | `a` **b** $\\frac{x$ [c](javascript:d) ![e](f)\n# g \udcff"
    run = make_run(1, hostile=hostile)
    other = with_recipe(run, seed=1, generations=1)
    files = table_files(by_task({hostile: run, hostile + "2": other}))
    for name in ("tables/table1.md", "tables/table6.md"):
        text = files[name].decode()
        ours = re.sub(r"\\[\\`*_{}\[\]<>#|~$&]", "", text)  # what is left is markup
        assert not set("<>`*$&") & set(ours)
        assert "](" not in ours
        for line in ours.splitlines():
            assert line.startswith("|") or "|" not in line
            assert not line.startswith("# g")
        tables = re.findall(r"(?m)^\|.*\|$", ours)
        assert len({line.count("|") for line in tables}) == 1
        assert "owned" in text
    assert rows(files["tables/table1.csv"])[0]["runs"] == hostile.replace("\udcff", "\\udcff")


def test_texts_of_files_stay_texts_in_images() -> None:
    # Long texts are cut, so that what is hostile has to come first.
    for hostile in (HOSTILE, "$\\frac{x$ --> <script>", "_ \udcff \u9577\u3044"):
        run = with_recipe(make_run(1), task=hostile)
        chart = figure_1(only_task({hostile: run, f"{hostile} too": run}))
        assert chart is not None
        drawn = ElementTree.fromstring(evidence_images.image(chart, "svg"))
        names = {element.tag.rpartition("}")[2] for element in drawn.iter()}
        assert names & {"script", "image", "a", "foreignObject"} == set()
        assert evidence_images.image(chart, "png").startswith(b"\x89PNG")


def test_a_run_of_the_older_format() -> None:
    runs = {"old": open_checkpoint(OLD_FORMAT)}
    task = only_task(runs)
    history = runs["old"].history.rows
    curve = fitness_curve(task.series[0])
    assert (curve.low, curve.high) == ([r.best for r in history], [r.worst for r in history])
    files = table_files([task])
    assert "No SGD steps are recorded, hence no Table 6: old." in files["tables/table6.md"].decode()
    assert rows(files["tables/table6.csv"]) == []
    assert None not in drawn(runs)


@pytest.mark.parametrize("case", ["generation 0", "no history", "all failed"])
def test_runs_without_numbers_have_tables_all_the_same(case: str) -> None:
    run = make_run(2)
    if case == "generation 0":
        run = only_initial(run)
    elif case == "no history":
        run = msgspec.structs.replace(run, history=History())
    else:
        run = with_scores(run, math.inf)
        run.history.survivors[:] = [
            tuple(msgspec.structs.replace(m, fitness=math.inf) for m in members)
            for members in run.history.survivors
        ]
    files = table_files(by_task({"run": run}))
    task = only_task({"run": run})
    assert (figure_1(task) is not None) == (case == "generation 0")
    assert (figure_2(task) is not None) == (case == "all failed")
    row = rows(files["tables/table1.csv"])[0]
    assert (row["best"] == "") == (case == "all failed")
    page.render_page({"run": run})


def test_weights_are_not_read(tmp_path: Path) -> None:
    write(tmp_path / "run", 1)
    for path in tmp_path.glob("run/gen_*/leader_*.h5"):
        size = path.stat().st_size
        path.write_bytes(b"\0" * size)
    run = open_checkpoint(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    assert "tables/table1.md" in table_files(by_task({"run": run}))
