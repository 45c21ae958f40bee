"""bench/evidence.py: what is left to run, what a row says, and the statistics of the rows."""

import importlib.util
import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy import stats

from esgd_hpc.cli import main as esgd
from esgd_hpc.errors import InputError, RunError
from esgd_hpc.recipe_file import load_recipe

SCRIPT = Path(__file__).parents[2] / "bench" / "evidence.py"


def _loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


evidence: Any = _loaded()


def row(method: str, seed: int, loss: float, task: str = "a", **changes: Any) -> Any:
    """Return a made-up row."""
    made = evidence.Row(
        task=task,
        method=method,
        seed=seed,
        recipe="0123",
        generations=2,
        epochs=4,
        parents=1 if method == "single" else 8,
        offspring=24 if method == "esgd" else 0,
        validation_loss=loss,
        top_low=loss,
        top_high=loss + 0.1,
        seconds=3.5,
        version="0.1",
        commit="c" * 40,
        torch="2.13.0",
        machine="a machine, 2 cores",
        digest="d" * 64,
        metrics={"error_rate": loss / 2, "test_loss": loss + 0.01, "test_error_rate": loss / 2},
    )
    return made._replace(**changes)


def rows_of(ours: Iterable[float], theirs: Iterable[float]) -> list[Any]:
    """Return rows of ESGD and of sgd-only, seeds from 1; theirs backwards."""
    both = [row("esgd", seed, float(loss)) for seed, loss in enumerate(ours, 1)]
    return both + [row("sgd-only", seed, float(loss)) for seed, loss in enumerate(theirs, 1)][::-1]


# Statistics ---------------------------------------------------------------------------------------


def test_compare_is_what_scipy_says_of_the_pairs() -> None:
    random = np.random.default_rng(3)
    theirs = 0.4 + 0.02 * random.standard_normal(8)
    ours = theirs - 0.004 + 0.005 * random.standard_normal(8)
    found = evidence.compare(rows_of(ours, theirs), "a", "sgd-only", "validation_loss")
    wilcoxon = stats.wilcoxon(ours, theirs, alternative="less", method="exact").pvalue
    assert found.wilcoxon == pytest.approx(wilcoxon, rel=1e-12)
    assert found.t_test == pytest.approx(stats.ttest_rel(ours, theirs, alternative="less").pvalue)
    assert found.difference == pytest.approx(float(np.mean(ours - theirs)))
    assert (found.pairs, found.wins) == (8, int((ours < theirs).sum()))


def test_p_of_eight_wins_of_eight_by_hand() -> None:
    ours = [0.1 * n for n in range(1, 9)]
    theirs = [loss + 0.001 * n for n, loss in enumerate(ours, 1)]
    found = evidence.compare(rows_of(ours, theirs), "a", "sgd-only", "validation_loss")
    assert found.wilcoxon == pytest.approx(1 / 2**8)  # one of all patterns of signs
    # The other way round every pattern is at least as low.
    found = evidence.compare(rows_of(theirs, ours), "a", "sgd-only", "validation_loss")
    assert found.wilcoxon == pytest.approx(1.0)


def test_p_with_ties_counts_patterns_of_signs() -> None:
    differences = np.array([-2.0, -1.0, -1.0, 1.0, -3.0, 0.0])  # exact in float, as rates are not
    signed = differences[differences != 0]
    ranks = stats.rankdata(np.abs(signed))
    found = float(ranks[signed > 0].sum())
    sums = [
        float(ranks[np.array(signs)].sum())
        for signs in itertools.product([False, True], repeat=len(signed))
    ]
    wanted = sum(total <= found for total in sums) / len(sums)
    rows = rows_of(10 + differences, [10.0] * 6)
    found_p = evidence.compare(rows, "a", "sgd-only", "validation_loss").wilcoxon
    assert found_p == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("ours", "theirs", "wilcoxon", "t_test"),
    [
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5], 1.0, 1.0),  # no difference at all
        ([0.25, 0.25, 0.25], [0.5, 0.5, 0.5], 1 / 8, 0.0),  # the same one: no spread
        ([0.25], [0.5], math.nan, math.nan),
        ([], [0.5], math.nan, math.nan),
        ([0.25, math.inf], [0.5, 0.5], 0.75, math.nan),  # a run that diverged is the worst
        ([0.25, math.nan], [0.5, 0.5], math.nan, math.nan),  # one without the metric is no pair
    ],
)
def test_p_of_hard_cases(
    ours: list[float], theirs: list[float], wilcoxon: float, t_test: float
) -> None:
    found = evidence.compare(rows_of(ours, theirs), "a", "sgd-only", "validation_loss")
    assert found.wilcoxon == pytest.approx(wilcoxon, nan_ok=True)
    assert found.t_test == pytest.approx(t_test, nan_ok=True)


def test_compare_pairs_seeds_that_both_have_and_metrics_by_name() -> None:
    rows = [row("esgd", 1, 0.3), row("esgd", 2, 0.1), row("population", 2, 0.2)]
    rows.append(row("population", 3, 0.4, metrics={}))
    found = evidence.compare(rows, "a", "population", "test_loss")
    assert (found.pairs, found.difference) == (1, pytest.approx(-0.1))


def test_holm_by_hand() -> None:
    assert evidence.holm([0.01, 0.04, 0.03, math.nan, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, math.nan, 0.02], nan_ok=True
    )
    assert evidence.holm([0.6, 0.7]) == [1.0, 1.0]


# Rows and resumption ------------------------------------------------------------------------------


def test_rows_come_back_from_the_file_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "new" / "runs.csv"
    first = row("esgd", 1, 1 / 3)
    second = row("single", 1, 0.1 + 0.2, task="b", metrics={"perplexity": 100.125})
    evidence.add_row(file, first)
    evidence.add_row(file, second)
    assert evidence.read_rows(file) == [first, second]
    newer = row("esgd", 1, 0.2, recipe="4567")  # of a recipe that has changed since
    evidence.add_row(file, newer)
    assert evidence.read_rows(file) == [newer, second]
    assert [path.name for path in file.parent.iterdir()] == ["runs.csv"]


def test_runs_left_are_those_without_a_row_of_the_present_recipe() -> None:
    there = [row("esgd", 1, 0.3), row("single", 2, 0.3), row("single", 1, 0.3, recipe="old")]
    left = evidence.runs_left({"a": "0123", "b": "89"}, ["esgd", "single"], [1, 2], there)
    assert [(run.task, run.method, run.seed) for run in left] == [
        ("a", "single", 1),
        ("b", "esgd", 1),
        ("b", "single", 1),
        ("a", "esgd", 2),
        ("b", "esgd", 2),
        ("b", "single", 2),
    ]
    assert evidence.current(there, {"a": "0123"}) == there[:2]


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "runs.csv"
    file.write_text("task,method\na,esgd\n")
    with pytest.raises(InputError, match=r"runs\.csv: is no table of this command"):
        evidence.read_rows(file)


def test_unequal_epochs_are_refused() -> None:
    rows = [row("esgd", 1, 0.3), row("single", 1, 0.3), row("single", 1, 0.3, "b", epochs=9)]
    evidence.check_epochs(rows)
    rows.append(row("population", 1, 0.3, epochs=5))
    with pytest.raises(InputError, match=r"population of seed 1 trained for 5 epochs, but esgd"):
        evidence.check_epochs(rows)


def test_hash_of_a_recipe_leaves_out_method_seed_and_what_defines_no_result() -> None:
    plain = evidence.recipe_hash(load_recipe("digits"))
    same = ['method="single"', "seed=7", "checkpoint.every=5", "sgd.milestone_factor=0.1"]
    assert evidence.recipe_hash(load_recipe("digits", same)) == plain
    for other in ("sgd.epochs=2", "sgd.optimizers.0.momentum=[0.1,0.8]", "population.parents=9"):
        assert evidence.recipe_hash(load_recipe("digits", [other])) != plain


def test_recipes_that_cannot_tell_are_refused() -> None:
    with pytest.raises(InputError, match=r"fitness\.data"):
        evidence.open_bench("digits", ['fitness.data="training"'])
    with pytest.raises(InputError, match=r"single\.learning_rate"):
        evidence.open_bench("digits", ["single.learning_rate=0"])


def test_seeds_in_words() -> None:
    assert evidence.seeds_of("1-3,7") == [1, 2, 3, 7]
    assert evidence._seeds([row("esgd", seed, 0.3) for seed in (7, 2, 1, 3, 1)]) == "1-3,7"
    for wrong in ("", "1-", "-3", "a", "1,1", "3-1"):
        with pytest.raises(InputError, match="--seeds"):
            evidence.seeds_of(wrong)


# Pages --------------------------------------------------------------------------------------------


def test_pages_say_what_the_rows_say() -> None:
    rows = [
        row(method, seed, loss + 0.001 * seed * scale)
        for seed in range(1, 9)
        for method, loss, scale in (
            ("esgd", 0.30, 1.0),
            ("sgd-only", 0.31, 1.1),
            ("population", 0.32, 1.2),
            ("single", 0.25, 1.3),
        )
    ]
    table = evidence.short_table(rows).splitlines()
    assert table[2].startswith("| `a` | 4 | validation loss | 0.3045 | 0.315 (p 0.0039) | ")
    assert table[2].endswith("| 0.2559 (p 1) |")
    assert "Seeds 1-8" in "\n".join(table)
    assert "not corrected for the 3 comparisons" in "\n".join(table)
    text = evidence.page(rows, "python bench/evidence.py")
    assert "    python bench/evidence.py\n" in text
    assert "a machine, 2 cores" in text
    assert "| yes (p 0.0039, 8 of 8 seeds) | yes (p 0.0039, 8 of 8 seeds) | not shown (p 1" in text
    assert "| without evolution | validation loss | -0.01045 | 8 of 8 | 0.0039 | 0.012 |" in text
    assert "| ESGD | 0.3045 [0.301, 0.308] | " in text
    assert "mu 8, lambda 24" in text


def test_pages_of_a_bench_that_was_stopped_have_gaps() -> None:
    rows = [row("esgd", 1, 0.3), row("population", 1, 0.31)]
    assert "too few seeds" in evidence.page(rows, "x")
    assert "| 0.3 | - | 0.31 | - |" in evidence.short_table(rows)


# The real thing -----------------------------------------------------------------------------------

OVERRIDES = ["generations=1", "population.parents=3", "population.offspring=4"]


def test_two_methods_and_two_seeds_of_digits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = evidence.open_bench("digits", OVERRIDES)
    output, work = tmp_path / "output", tmp_path / "work"
    file = output / "runs.csv"

    def make(seeds: list[int]) -> int:
        methods = ["esgd", "single"]
        return int(evidence.make_evidence([bench], methods, seeds, 2, output, work, "command"))

    # Two of the four are there already, and stay as they are.
    made_up = [
        row(method, 2, 0.5, "digits", recipe=bench.hash, epochs=1, metrics={})
        for method in ("esgd", "single")
    ]
    for there in made_up:
        evidence.add_row(file, there)
    assert make([1, 2]) == 0
    ours, single, *others = evidence.read_rows(file)
    assert others == made_up
    assert (ours.method, single.method) == ("esgd", "single")
    assert (ours.epochs, ours.parents, ours.offspring, ours.generations) == (1, 3, 4, 1)
    assert (single.epochs, single.parents, single.offspring) == (1, 1, 0)
    assert 0.0 < ours.metrics["error_rate"] < 1.0
    assert ours.top_low == ours.validation_loss < ours.top_high
    page = (output / "README.md").read_text("utf-8")
    assert "## digits" in page
    assert "1 SGD epochs for each individual" in page

    # The folders of the first seed stay, for the report; inspect says what the row says.
    folder = evidence.folder_of(ours.run, work)
    assert (folder.parent / "report" / "report.html").is_file()
    capsys.readouterr()
    assert esgd(["inspect", str(folder), "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    made_by = {"esgd-hpc": "1", "esgd-hpc commit": "2", "torch": "3", "machine": "4"}
    again = evidence.row_from(ours.run, described, 1.0, made_by)
    assert again.digest == ours.digest
    assert again.validation_loss == ours.validation_loss
    assert again.metrics == ours.metrics
    with pytest.raises(RunError, match=r"seed 1, generation 1 of 1 is no finished run of esgd"):
        evidence.row_from(ours.run._replace(seed=2), described, 1.0, made_by)


def test_a_failed_run_is_told_and_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = evidence.Bench("digits", load_recipe("digits"), ["nonsense=1"])
    run = evidence.Run("digits", "esgd", 1, bench.hash)
    file = tmp_path / "runs.csv"
    assert evidence.carry_out([bench], [run], 1, tmp_path / "work", file) == 1
    told = capsys.readouterr().err
    assert "digits esgd, seed 1: failed: status 2: " in told
    assert "unknown key nonsense" in told
    assert evidence.runs_left({"digits": bench.hash}, ["esgd"], [1], []) == [run]
    assert not file.exists()
