"""The report page says what a run holds, escapes what it does not know, and is written whole."""

import argparse
import base64
import hashlib
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esgd_hpc.checkpoint import files
from esgd_hpc.checkpoint.reader import Checkpoint, open_checkpoint
from esgd_hpc.commands import report
from esgd_hpc.config import recipe_data
from esgd_hpc.errors import InputError, RunError
from esgd_hpc.history import Birth, History, RecipeChange, generation_row
from esgd_hpc.layout import Entry, Layout
from esgd_hpc.population import Draw, Individual, Population
from esgd_hpc.recipe_file import load_recipe
from esgd_hpc.report import figures, page, tables
from esgd_hpc.report.lineage import Family, family_of
from unit.test_checkpoint import write

OLD_FORMAT = Path(__file__).parents[1] / "data" / "format_1"

HOSTILE = (
    '</script><script>window.owned = 1</script><img src="http://owned.example/" onerror="owned=1">'
    '<!--<script>\u2028 \' " & &lt;b&gt; <a href="javascript:owned=1">%{x}</a>'
)


# ---------------------------------------------------------------- runs to report on


def make_run(
    generations: int = 4,
    parents: int = 6,
    hostile: str = "",
    overrides: Mapping[str, object] = {},
) -> Checkpoint:
    """Return a made-up run as it would come from disk; `overrides` are of the recipe.

    `hostile` is in every text that a file can hold; then some individuals fail, too.
    """
    settings = {"generations": generations, "population.parents": parents, **overrides}
    recipe = load_recipe("digits", [f"{key}={json.dumps(v)}" for key, v in settings.items()])
    chance = np.random.default_rng(3)
    individuals = [
        Individual(uid=uid, fitness=2.0 + chance.random(), metrics={"error_rate": 0.9})
        for uid in range(recipe.num_parents)
    ]
    population = Population(
        generation=0, individuals=individuals, owner={}, next_uid=len(individuals), weights={}
    )
    history = History()
    diversity = {"": 1.5} if recipe.num_parents > 1 else {}
    history.rows.append(generation_row(population, None, recipe, {}, diversity))
    history.remember([], [], [], {i.uid for i in individuals}, population)
    for k in range(1, generations + 1):
        before = population.individuals
        trained = [trained_one(individual, k, chance, hostile) for individual in before]
        children = []
        if recipe.method == "esgd":
            children = [born(trained, population.next_uid + n, k, chance) for n in range(9)]
        ranked = sorted([*trained, *children], key=lambda i: (i.fitness, i.uid))
        kept = sorted(ranked[: len(before)], key=lambda i: i.uid)
        population = msgspec.structs.replace(
            population,
            generation=k,
            individuals=kept,
            next_uid=population.next_uid + len(children),
        )
        seconds = {"sgd": 2.0, "evolution": 0.5, "checkpoint": 0.25}
        diversity = {name: distance / 2 for name, distance in diversity.items()}
        row = generation_row(population, before, recipe, seconds, diversity)
        history.rows.append(row)
        history.remember(before, trained, children, {i.uid for i in kept}, population)
    entry = Entry(name="w", offset=0, size=12, shape=(3, 4), kind="parameter", dtype="float32")
    described = recipe_data(recipe)
    if hostile:
        described["task"] = described["task_options"][hostile] = hostile
        history.changes.append(RecipeChange(generation=1, key=hostile, old=hostile, new=hostile))
    return Checkpoint(
        path=Path("runs/made-up/gen_000004"),
        commit=files.Commit(files.FORMAT_VERSION, generations, {}),
        generation=generations,
        individuals=population.individuals,
        owner={i.uid: 0 for i in population.individuals},
        next_uid=population.next_uid,
        layout=Layout((entry,)),
        recipe=described,
        history=history,
        ranks=4,
        ranks_per_group=2,
        groups=2,
        provenance={"command": "esgd run digits " + hostile, **({hostile: "x"} if hostile else {})},
    )


def trained_one(
    individual: Individual, k: int, chance: np.random.Generator, hostile: str
) -> Individual:
    """Return an individual after an SGD step; one in five is backed off."""
    undone = chance.random() < 0.2
    fails = bool(hostile) and chance.random() < 0.3
    draw = Draw(
        optimizer="adam" if chance.random() < 0.5 else "sgd",
        learning_rate=float(10 ** chance.uniform(-4, -1)),
        momentum=float(chance.choice([0.0, 0.9])),
        batch_size=64,
        hyperparameters={
            "dropout": float(chance.random()),
            "cell" + hostile: str(chance.choice(["gru", "lstm" + hostile])),
            "tied": bool(chance.random() < 0.5),
        },
    )
    fitness = individual.fitness if undone else individual.fitness * 0.8
    return msgspec.structs.replace(
        individual,
        fitness=math.inf if fails else fitness,
        metrics={"error_rate": math.nan if fails else fitness / 4},
        origin="sgd",
        draw=draw,
        epochs=individual.epochs + 1,
        back_offs=individual.back_offs + undone,
        failure=f"it failed {hostile}" if fails else "",
    )


def born(trained: list[Individual], uid: int, k: int, chance: np.random.Generator) -> Individual:
    """Return a child of two finite parents."""
    able = [i for i in trained if math.isfinite(i.fitness)] or trained
    first, second = (able[int(n)] for n in chance.integers(0, len(able), 2))
    return Individual(
        uid=uid,
        fitness=(first.fitness + second.fitness) / 2 * float(chance.uniform(0.95, 1.1)),
        metrics={"error_rate": 0.5},
        origin="offspring",
        born=k,
        parents=tuple(sorted({first.uid, second.uid})),
        noise_seed=str(uid),
        sigma=0.01 / k,
    )


class Page(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(content.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    def tags(self) -> list[str]:
        return [tag for tag, _ in self.elements]

    def attributes(self, name: str) -> list[str]:
        return [str(attrs[name]) for _, attrs in self.elements if name in attrs]

    @property
    def data(self) -> list[dict[str, Any]]:
        """What the charts of each run draw."""
        found: list[dict[str, Any]] = self.numbers["runs"]
        return found

    @property
    def numbers(self) -> dict[str, Any]:
        """What all charts draw."""
        found: dict[str, Any] = json.loads(self.scripts[0], parse_constant=pytest.fail)
        return found

    @property
    def figures(self) -> list[str]:
        return self.attributes("data-kind")


def rendered(**runs: Checkpoint) -> Page:
    return Page(page.render_page(runs))


# ---------------------------------------------------------------- one file


def test_the_page_needs_nothing_but_itself() -> None:
    shown = rendered(first=make_run(), second=make_run(generations=2))
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(shown.tags())
    for attribute in ("src", "href", "srcset", "action"):
        assert shown.attributes(attribute) == []
    assert [name for _, attrs in shown.elements for name in attrs if name.startswith("on")] == []
    assert len(shown.scripts) == 3  # numbers, plotly, ours
    assert [script.count("* plotly.js v") for script in shown.scripts] == [0, 1, 0]


def test_the_policy_lets_only_its_own_two_scripts_run() -> None:
    shown = rendered(run=make_run())
    (policy,) = shown.attributes("content")[:1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()) for s in shown.scripts[1:]]
    assert rules["script-src"] == " ".join(f"'sha256-{h.decode()}'" for h in hashes)
    # It has to come before all that it rules over.
    tags = shown.tags()
    assert tags.index("meta") < tags.index("style") < tags.index("script")


def test_texts_of_files_stay_texts() -> None:
    plain, hostile = make_run(), make_run(hostile=HOSTILE)
    shown = Page(page.render_page({HOSTILE: hostile, "other": plain}))
    expected = rendered(one=hostile, other=plain)
    assert len(shown.scripts) == 3
    assert set(shown.tags()) == set(expected.tags())
    assert "img" not in shown.tags()
    assert "a" not in shown.tags()
    assert HOSTILE in shown.text
    assert f"esgd run digits {HOSTILE}" in shown.text
    assert f"it failed {HOSTILE}"[:200] in shown.text
    data = shown.data[0]
    assert data["name"] == HOSTILE
    assert f"cell{HOSTILE}" in [setting["name"] for setting in data["steps"]["settings"]]


def test_a_folder_whose_name_is_no_text() -> None:
    content = page.render_page({"run \udcff": make_run(generations=1)})
    assert "run \\udcff" in Page(content).text


# ---------------------------------------------------------------- what it says


def test_the_headlines_of_a_run() -> None:
    run = make_run()
    best = run.best()
    text = rendered(run=run).text
    for said in (
        "6 individuals of 12 parameters and 32 children in each evolution step, on 4 ranks in 2",
        "method esgd",
        "4 of 4",
        f"{best.fitness:.6g}",
        f"loss on the validation data, lower is better; individual {best.uid}",
        f"{best.metrics['error_rate']:.4g}",
        "the m-elitist average fitness never rose",
        "11.0 s",  # 4 generations of 2.75
    ):
        assert said in text, said


def test_theorem_1_names_the_generations_that_broke_it() -> None:
    run = make_run(overrides={"sgd.backoff_probability": 0.7})
    run.history.rows[2] = msgspec.structs.replace(run.history.rows[2], theorem_1_holds=False)
    text = rendered(run=run).text
    assert "does not hold" in text
    assert "rose in generation 2, as it may where not every epoch is backed off" in text


def test_what_made_the_best_is_told_for_each_origin() -> None:
    run = make_run()
    (worst,) = [i for i in run.individuals if i is max(run.individuals, key=lambda i: i.fitness)]
    for told, champion in (
        ("child of 3 and 5 in generation 2, noise 0.005, not trained since", born_of(3, 5)),
        ("the given model, not trained since", born_of(origin="anchor")),
        ("of the initial population, not trained yet", born_of(origin="initial")),
        ("learning rate 0.25, Nesterov momentum 0.5, batch size 8, cell gru, tied true", DRAWN),
    ):
        better = msgspec.structs.replace(champion, fitness=worst.fitness / 100)
        shown = rendered(run=msgspec.structs.replace(run, champion=better))
        assert told in shown.text
        assert "ever" in shown.text.split()  # its row in the table, before rank 1


def born_of(*parents: int, origin: Any = "offspring") -> Individual:
    return Individual(uid=8, fitness=1.0, origin=origin, born=2, parents=parents, sigma=0.005)


DRAWN = Individual(
    uid=8,
    fitness=1.0,
    origin="sgd",
    draw=Draw(
        optimizer="sgd",
        learning_rate=0.25,
        momentum=0.5,
        nesterov=True,
        batch_size=8,
        hyperparameters={"tied": True, "cell": "gru"},
    ),
)


def test_the_population_is_in_the_order_of_fitness() -> None:
    run = make_run()
    table = tables.population_table(run)
    ranked = sorted(run.individuals, key=lambda i: (i.fitness, i.uid))
    assert [row[1] for row in table.rows] == [str(i.uid) for i in ranked]
    assert "failure" not in table.columns  # nothing failed
    assert "failure" in tables.population_table(failed(run)).columns


def failed(run: Checkpoint) -> Checkpoint:
    """Return the run with an individual that failed at the end."""
    first = msgspec.structs.replace(run.individuals[0], fitness=math.inf, failure="out of memory")
    return msgspec.structs.replace(run, individuals=[first, *run.individuals[1:]])


def test_changes_failures_recipe_and_provenance_are_on_the_page() -> None:
    run = make_run(hostile="-hostile-")
    text = rendered(run=run).text
    for said in (
        "Changes of the recipe on the way",
        "What went wrong in SGD steps",
        "it failed -hostile-",
        "evolution.elite_fraction",
        "sgd.optimizers[1].learning_rate",
        "esgd run digits -hostile-",
    ):
        assert said in text, said
    assert "What went wrong" not in rendered(run=make_run()).text


def test_numbers_that_are_not_finite_are_null() -> None:
    run = make_run(hostile="x")
    failures = [s for s in run.history.steps if not math.isfinite(s.fitness)]
    assert failures
    data = rendered(run=failed(run)).data[0]
    assert data["steps"]["fitness"].count(None) == len(failures)
    assert None in data["members"]["learning_rate"]  # of children


def test_charts_draw_what_the_history_holds() -> None:
    run = make_run()
    data = rendered(run=run).data[0]
    history = run.history
    assert data["rows"]["generation"] == [0, 1, 2, 3, 4]
    assert data["rows"]["best"] == pytest.approx([row.best for row in history.rows], rel=1e-6)
    members = [(k, m) for k, ms in enumerate(history.survivors) for m in ms]
    assert data["members"]["uid"] == [m.uid for _, m in members]
    assert data["members"]["generation"] == [k for k, _ in members]
    assert len(data["steps"]["uid"]) == len(history.steps) == 24
    names = [setting["name"] for setting in data["steps"]["settings"]]
    assert names == [
        "learning rate", "momentum", "weight decay", "batch size", "cell", "dropout", "tied",
    ]  # fmt: skip
    tied = data["steps"]["settings"][-1]["values"]
    assert tied == [str(s.draw.hyperparameters["tied"]).lower() for s in history.steps]
    assert data["family"]["uid"][0] == run.best().uid


def test_long_runs_are_thinned_by_whole_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(generations=9)
    monkeypatch.setattr(figures, "MOST_POINTS", 24)
    data = rendered(run=run).data[0]
    assert data["members"]["every"] == 3  # 60 individuals
    assert data["members"]["generation"] == [g for g in (0, 3, 6, 9) for _ in range(6)]
    assert len(data["rows"]["generation"]) == 10


def test_long_tables_say_what_they_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_ROWS", 4)
    text = rendered(run=make_run()).text
    assert "2 more are in the files: esgd inspect --json" in text
    assert text.count("1 more are in the files") == 1


# ---------------------------------------------------------------- runs that lack something


ALL = ["fitness", "children", "diversity", "optimizers", "seconds", "settings", "family"]
PAPER = ["figure1", "figure2"]
"""Figures of the paper, for each task."""


def only_initial(run: Checkpoint) -> Checkpoint:
    """Return the run as it was before its first generation."""
    history = History(
        rows=run.history.rows[:1],
        survivors=run.history.survivors[:1],
        offspring=run.history.offspring[:1],
        births=[birth for birth in run.history.births if birth.born == 0],
    )
    initial = [Individual(uid=m.uid, fitness=m.fitness) for m in history.survivors[0]]
    return msgspec.structs.replace(run, generation=0, history=history, individuals=initial)


LACKING: dict[str, tuple[Callable[[], Checkpoint], list[str], str]] = {
    "nothing": (make_run, [], ""),
    "sgd-only": (
        lambda: make_run(overrides={"method": "sgd-only"}),
        ["children"],
        "sgd-only has no evolution step",
    ),
    "population": (
        lambda: make_run(overrides={"method": "population"}),
        ["children"],
        "method population has no evolution step: children in the elite",
    ),
    "single": (
        lambda: make_run(overrides={"method": "single"}),
        ["children", "diversity"],
        "there are no two individuals: diversity",
    ),
    "generation 0": (
        lambda: only_initial(make_run()),
        ["children", "seconds", "settings"],
        "there was no SGD step yet: hyper-parameters and fitness",
    ),
}
"""Name to a run, the charts that it has no numbers for, and what the page says about one."""


@pytest.mark.parametrize("case", LACKING)
def test_a_chart_without_numbers_is_left_out_with_the_reason(case: str) -> None:
    make, lacks, because = LACKING[case]
    shown = rendered(run=make())
    paper = [kind for kind in PAPER if not (kind == "figure2" and "children" in lacks)]
    assert shown.figures == [*(kind for kind in ALL if kind not in lacks), *paper]
    assert because in shown.text


def test_the_older_format_shows_its_rows_and_says_what_is_missing() -> None:
    run = open_checkpoint(OLD_FORMAT)
    assert run.commit.format == 1
    shown = rendered(old=run)
    assert shown.figures == ["fitness", "children", "seconds", *PAPER]
    assert "written in format 1, which records the rows of the history alone" in shown.text
    assert "this run did not record them: diversity, individuals by optimizer" in shown.text
    assert shown.data[0]["rows"]["lower_quartile"] == [None, None, None]


def test_a_history_without_generations() -> None:
    run = msgspec.structs.replace(make_run(), history=History())
    assert rendered(run=run).figures == []


# ---------------------------------------------------------------- several runs


def test_several_runs_are_compared() -> None:
    runs = {"one": make_run(), "two": make_run(generations=2, overrides={"method": "sgd-only"})}
    shown = Page(page.render_page(runs))
    assert shown.figures == [*PAPER, "comparison", *ALL, *(k for k in ALL if k != "children")]
    rows = tables.comparison_table(runs).rows
    assert [row[:5] for row in rows] == [
        ("one", "digits", "esgd", "4 of 4", "6"),
        ("two", "digits", "sgd-only", "2 of 2", "6"),
    ]
    assert "cannot be compared" not in shown.text
    other = make_run(hostile="x")
    assert "cannot be compared" in rendered(one=runs["one"], other=other).text


# ---------------------------------------------------------------- family


def family(
    parents: Mapping[int, tuple[int, ...]], born_in: Mapping[int, int], most: int = 99
) -> Family:
    """Return the family of the youngest."""
    births = [
        Birth(
            uid=uid,
            born=born_in[uid],
            origin="offspring" if parents[uid] else "initial",
            parents=parents[uid],
            noise_seed="0",
            sigma=0.0,
            fitness=1.0,
        )
        for uid in sorted(parents)
    ]
    until = max(born_in.values())
    return family_of(max(parents), History(births=births), until=until, most=most)


def test_the_family_is_all_that_an_individual_descends_from() -> None:
    parents = {0: (), 1: (), 2: (), 5: (0, 1), 6: (1, 2), 9: (5,)}
    found = family(parents, {0: 0, 1: 0, 2: 0, 5: 1, 6: 1, 9: 3})
    assert [r.uid for r in found.relatives] == [9, 5, 1, 0]
    assert [(found.relatives[p].uid, found.relatives[c].uid) for p, c in found.edges] == [
        (5, 9),
        (0, 5),
        (1, 5),
    ]
    assert {r.uid: (r.start, r.end) for r in found.relatives} == {
        9: (3.0, 3), 5: (1.0, 3), 1: (0.0, 1), 0: (0.0, 1),
    }  # fmt: skip
    assert found.num_ancestors == 3


def test_children_of_children_of_the_same_generation_stand_beside_them() -> None:
    found = family({0: (), 4: (0,), 7: (4,)}, {0: 0, 4: 1, 7: 1})
    starts = {r.uid: r.start for r in found.relatives}
    assert starts[0] < starts[4] < starts[7] < 2


def test_a_parent_whose_birth_is_not_recorded_is_shown() -> None:
    found = family({0: (), 9: (0, 6)}, {0: 0, 9: 2})
    assert {r.uid: r.birth is None for r in found.relatives} == {9: False, 6: True, 0: False}


@given(st.data(), st.integers(2, 40), st.integers(1, 40))
def test_no_two_relatives_share_a_lane_at_the_same_time(
    data: st.DataObject, size: int, most: int
) -> None:
    """A damaged file may name any parents, also itself and younger ones."""
    uids = st.integers(0, size)
    parents = {
        uid: tuple(data.draw(st.lists(uids, max_size=3, unique=True))) for uid in range(size)
    }
    born_in = {uid: uid // 4 for uid in range(size)}
    found = family(parents, born_in, most)
    assert len(found.relatives) <= most
    assert len(found.relatives) == min(most, found.num_ancestors + 1)
    uids_found = [r.uid for r in found.relatives]
    assert uids_found == sorted(set(uids_found), reverse=True)
    lanes: dict[int, list[tuple[float, float]]] = {}
    for relative in found.relatives:
        lanes.setdefault(relative.lane, []).append((relative.start, float(relative.end)))
    for lives in lanes.values():
        lives.sort()
        for (_, end), (start, _) in pairwise(lives):
            assert end <= start
        assert len({start for start, _ in lives}) == len(lives)


# ---------------------------------------------------------------- the command


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run of generations 1 and 2."""
    write(tmp_path / "run", 1)
    write(tmp_path / "run", 2)
    return tmp_path / "run"


def called(
    capsys: pytest.CaptureFixture[str], *runs: Path, output: Path | None = None
) -> tuple[str, bytes]:
    """Run the command and return the name of the page and its content."""
    arguments = argparse.Namespace(
        runs=list(map(str, runs)), output=None if output is None else str(output)
    )
    assert report.execute(arguments) == 0
    name, _, said = capsys.readouterr().out.partition(": open it in a browser\n")
    folder = Path(name).parent
    assert said == f"Tables and figures as files: {folder / 'figures'}, {folder / 'tables'}\n"
    return name, Path(name).read_bytes()


def test_one_run_gets_the_page_in_its_folder(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for made in ("report.html", "tables/table1.md"):
        (run / made).parent.mkdir(exist_ok=True)
        (run / made).write_text("an older one")
    (run / "figures").mkdir()
    before = sorted(path.name for path in run.iterdir())
    name, content = called(capsys, run)
    assert name == str(run / "report.html")
    assert sorted(path.name for path in run.iterdir()) == before
    assert "2 of 8" in Page(content).text
    generation = run / "gen_000001"
    name, content = called(capsys, generation)
    assert name == str(run / "report.html")  # nothing is added to a checkpoint
    assert "run, generation 1" in Page(content).text
    monkeypatch.chdir(generation)
    for place in (".", "../latest"):
        assert called(capsys, Path(place))[0] == str(run / "report.html")


def test_another_folder_is_made(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = run.parent / "far" / "away"
    assert called(capsys, run, output=output)[0] == str(output / "report.html")


def test_several_runs_get_one_page_in_the_current_folder(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    write(Path("other"))
    name, content = called(capsys, Path("run"), Path("other"))
    assert name == str(run.parent / "report" / "report.html")
    assert [data["name"] for data in Page(content).data] == ["run", "other"]


def test_runs_of_the_same_name_go_by_their_paths(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    write(Path("second/run"))
    _, content = called(capsys, Path("run"), Path("second/run"))
    assert [data["name"] for data in Page(content).data] == ["run", "second/run"]


def test_a_run_that_cannot_be_read_is_one_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="no such folder"):
        called(capsys, run.parent / "none")
    with pytest.raises(InputError, match="no checkpoint in this folder"):
        called(capsys, run.parent)
    for generation in ("gen_000001", "gen_000002"):
        path = run / generation / "population.h5"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(InputError, match="damaged") as caught:
        called(capsys, run)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


def test_an_output_that_is_a_file_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / "file").touch()
    with pytest.raises(InputError, match="is a file; name a folder"):
        called(capsys, run, output=run.parent / "file")
    with pytest.raises(InputError, match="is a file; name a folder"):
        called(capsys, run, output=run.parent / "file" / "below")
    (run / "tables").touch()
    with pytest.raises(InputError, match="tables: is a file; move it away"):
        called(capsys, run)


def test_a_page_that_cannot_be_written_leaves_nothing_behind(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "report.html").mkdir()
    before = sorted(path.name for path in run.iterdir())
    with pytest.raises(RunError, match=r"report\.html: cannot be written: Is a directory"):
        called(capsys, run)
    assert sorted(path.name for path in run.iterdir()) == before


@pytest.mark.parametrize("package", ["plotly", "matplotlib"])
def test_without_a_package_the_remedy_is_named(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    before = sorted(path.name for path in run.iterdir())
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf'needs {package}.*pip install "esgd-hpc\[report\]"'):
        called(capsys, run)
    assert sorted(path.name for path in run.iterdir()) == before


def test_the_command_loads_neither_torch_nor_mpi(run: Path) -> None:
    program = """
        import sys
        from esgd_hpc import cli
        from esgd_hpc.commands import report
        assert not {"numpy", "h5py", "jinja2", "plotly"} & sys.modules.keys()
        status = cli.main(["report", sys.argv[1]])
        assert "plotly" in sys.modules
        assert not {"torch", "mpi4py"} & sys.modules.keys()
        sys.exit(status)
    """
    program = "\n".join(line.strip() for line in program.splitlines())
    subprocess.run([sys.executable, "-c", program, str(run)], check=True, timeout=60)
