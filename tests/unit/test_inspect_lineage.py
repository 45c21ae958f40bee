"""What `esgd inspect` answers beyond its table, held against a run that was watched."""

import json
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
from mpi4py import MPI

import esgd_hpc
from esgd_hpc.checkpoint.reader import find_generation, open_checkpoint
from esgd_hpc.checkpoint.writer import CheckpointWriter
from esgd_hpc.cli import parser
from esgd_hpc.commands import inspect
from esgd_hpc.commands.inspect.words import optimizer_object
from esgd_hpc.config import Recipe
from esgd_hpc.errors import InputError, RunError
from esgd_hpc.history import GenerationRow
from esgd_hpc.layout import Layout
from esgd_hpc.lineage import Lineage
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import Individual, Population, Weights, fittest
from esgd_hpc.progress import Silent
from unit.test_checkpoint import make_layout, make_weights
from unit.test_lineage import RECIPE, Run, make_run

OLD = Path(__file__).parents[1] / "data" / "format_1"
SMALL = [
    "generations=5",
    "population.parents=4",
    "population.offspring=8",
    "task_options.hidden=8",
    "sgd.hyperparameters.weight_decay=[0, 0.001]",
    "sgd.epochs=2",
]


class Watch(Silent):
    """Remembers the individuals of every generation, as they are shown."""

    def __init__(self) -> None:
        self.populations: list[list[Individual]] = []

    def generation(
        self, recipe: Recipe, population: Population, history: Sequence[GenerationRow]
    ) -> None:
        self.populations.append(list(population.individuals))


class Watched(NamedTuple):
    """A real run, and what was seen of it while it went on."""

    folder: Path
    populations: list[list[Individual]]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    folder = tmp_path_factory.mktemp("watched") / "run"
    watch = Watch()
    recipe = esgd_hpc.load_recipe("digits", SMALL)
    esgd_hpc.run(recipe, MPI.COMM_SELF, output=folder, progress=watch)
    return Watched(folder, watch.populations)


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that trained its best individual until it was worse than before."""
    for seed in range(1, 30):
        folder = tmp_path_factory.mktemp("lost") / "run"
        changes = [f"seed={seed}", "generations=3", "sgd.backoff_probability=0"]
        changes += ['sgd.optimizers=[{name="sgd", learning_rate=[0.5, 3.0]}]']
        recipe = esgd_hpc.load_recipe("digits", [*SMALL[1:-1], *changes])
        result = esgd_hpc.run(recipe, MPI.COMM_SELF, output=folder)
        if result.population.champion is not None:
            return folder
    pytest.fail("every run kept its best individual")


def write_run(folder: Path, run: Run, layout: Layout, weights: dict[int, Weights]) -> Path:
    """Write the last generation of a run that never was."""
    members = run.populations[-1]
    population = Population(
        generation=len(run.populations) - 1,
        individuals=members,
        owner={i.uid: 0 for i in members},
        next_uid=10**6,
        weights=weights,
    )
    topology = Topology(MPI.COMM_SELF, 1)
    try:
        writer = CheckpointWriter(folder, layout, RECIPE, topology, {})
        writer.start(population, run.history)
        writer.finish()
    finally:
        topology.close()
    return folder


@pytest.fixture(scope="module")
def imagined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a longer run, of many failures, whose texts would control a terminal."""
    run = make_run(4, 30)
    layout = make_layout()
    weights = {i.uid: make_weights(i.uid, layout) for i in run.populations[-1]}
    return write_run(tmp_path_factory.mktemp("imagined") / "run", run, layout, weights)


def asked(capsys: pytest.CaptureFixture[str], run: Path, *words: str) -> str:
    """Return what `esgd inspect` prints."""
    assert inspect.execute(parser().parse_args(["inspect", str(run), *words])) == 0
    return capsys.readouterr().out


def told(capsys: pytest.CaptureFixture[str], run: Path, *words: str) -> Any:
    """Return the object that `esgd inspect --json` prints."""
    return json.loads(asked(capsys, run, *words, "--json"), parse_constant=pytest.fail)


def alive(populations: list[list[Individual]], uid: int) -> dict[int, Individual]:
    """Return the record of an individual in each generation that has it."""
    return {k: i for k, members in enumerate(populations) for i in members if i.uid == uid}


# ---------------------------------------------------------------- generations that are gone


def test_a_generation_without_folder_is_shown_as_it_was(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = told(capsys, watched.folder)
    for generation in (0, 1, 3):
        with pytest.raises(InputError, match=f"no generation {generation} in this folder"):
            find_generation(watched.folder, generation)
        members = watched.populations[generation]
        shown = told(capsys, watched.folder, "--generation", str(generation))
        assert list(shown) == list(newest)
        assert (shown["generation"], shown["generations"]) == (generation, 5)
        assert shown["digest"] is None
        assert [one["uid"] for one in shown["population"]] == [i.uid for i in members]
        for one, individual in zip(shown["population"], members, strict=True):
            assert one["fitness"] == individual.fitness
            assert one["origin"] == individual.origin
            assert one["born"] == individual.born
            assert one["parents"] == list(individual.parents)
            assert one["optimizer"] == optimizer_object(individual.draw)
        assert shown["best"]["uid"] == fittest(members).uid
        assert shown["best"]["in_population"] is True
        for name, column in shown["history"].items():
            assert column == newest["history"][name][: generation + 1]


def test_words_say_that_its_weights_are_gone(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = asked(capsys, watched.folder, "--generation", "2").splitlines()
    assert "weights     no longer kept: only the newest generations are" in lines
    assert not any(line.startswith("digest") for line in lines)
    ranked = sorted(watched.populations[2], key=lambda i: (i.fitness, i.uid))
    assert [line.split()[0] for line in lines[-4:]] == [str(i.uid) for i in ranked]
    for line, individual in zip(lines[-4:], ranked, strict=True):
        assert (f"{individual.draw.learning_rate:.3g}" if individual.draw else "-") in line.split()


def test_the_newest_generations_have_their_weights(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = {told(capsys, watched.folder, "--generation", str(k))["digest"] for k in (4, 5)}
    assert None not in digests
    assert len(digests) == 2
    with pytest.raises(InputError, match="no generation 6 in this folder; it has 4, 5"):
        asked(capsys, watched.folder, "--generation", "6")


def test_the_best_of_a_generation_that_is_gone_may_be_lost_as_well(
    lost: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = told(capsys, lost)
    best = shown["best"]
    assert best["in_population"] is False
    assert best["fitness"] == shown["history"]["best_ever"][-1] < shown["history"]["best"][-1]
    assert "the population lost it" in asked(capsys, lost)
    story = told(capsys, lost, "--individual", "best")
    assert (story["uid"], story["best"]) == (best["uid"], True)
    assert "the population lost that state" in asked(capsys, lost, "--individual", "best")
    first = told(capsys, lost, "--generation", "0")["best"]
    assert (first["in_population"], first["fitness"]) == (True, shown["history"]["best"][0])


# ---------------------------------------------------------------- one individual


def test_a_story_is_what_was_seen(watched: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    """Of everybody who was in the population at the end of a generation."""
    last = len(watched.populations) - 1
    seen = sorted({i.uid for members in watched.populations for i in members})
    assert len(seen) > 8
    children: dict[int, list[int]] = {uid: [] for uid in seen}
    for uid in seen:
        records = alive(watched.populations, uid)
        first = records[min(records)]
        story = told(capsys, watched.folder, "--individual", str(uid))
        assert (story["uid"], story["generation"]) == (uid, last)
        assert story["survived_until"] == max(records)
        assert story["in_population"] is (last in records)
        assert story["birth"] == {
            "generation": first.born,
            "origin": "offspring" if first.parents else "initial",
            "parents": list(first.parents),
            "sigma": first.sigma,
            "noise_seed": first.noise_seed,
            "fitness": first.fitness,
        }
        assert min(records) == first.born
        for parent in first.parents:
            assert parent in {i.uid for i in watched.populations[first.born - 1]}
            children[parent].append(uid)
        before = first
        for step in story["steps"]:
            assert step["fitness_before"] == before.fitness
            # The generation after its last one trained it, too, before it was left out.
            now = records.get(step["generation"])
            assert step["generation"] == before.born + 1 + story["steps"].index(step)
            if now is None:
                assert step["generation"] == max(records) + 1
                continue
            assert step["fitness"] == now.fitness
            assert step["optimizer"] == optimizer_object(now.draw)
            assert step["epochs"] == now.epochs - before.epochs == 2
            assert step["back_offs"] == now.back_offs - before.back_offs
            assert step["seconds"] == now.seconds
            before = now
        assert len(story["steps"]) == min(max(records) + 1, last) - first.born
    for uid in seen:
        story = told(capsys, watched.folder, "--individual", str(uid))
        assert [child["uid"] for child in story["children"]] == children[uid]
        assert story["num_children"] >= len(children[uid])
    best = fittest(watched.populations[-1]).uid
    assert [
        uid for uid in seen if told(capsys, watched.folder, "--individual", str(uid))["best"]
    ] == [best]


def test_a_story_ends_with_the_generation_that_is_looked_at(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    lives = {i.uid: len(alive(watched.populations, i.uid)) for i in watched.populations[3]}
    uid = max(lives, key=lambda u: lives[u])
    assert lives[uid] > 2
    whole = told(capsys, watched.folder, "--individual", str(uid))
    born = whole["birth"]["generation"]
    for generation in range(born, whole["survived_until"] + 1):
        words = ["--individual", str(uid), "--generation", str(generation)]
        story = told(capsys, watched.folder, *words)
        assert (story["survived_until"], story["in_population"]) == (generation, True)
        assert story["steps"] == whole["steps"][: generation - born]
        expected = [child for child in whole["children"] if child["generation"] <= generation]
        assert [c["uid"] for c in story["children"]] == [c["uid"] for c in expected]


def test_a_story_in_words(watched: Watched, capsys: pytest.CaptureFixture[str]) -> None:
    best = fittest(watched.populations[-1])
    text = asked(capsys, watched.folder, "--individual", "best")
    assert text == asked(capsys, watched.folder, "--individual", str(best.uid))
    assert text.startswith(f"individual  {best.uid}, up to generation 5\n")
    assert f"in generation {best.born}: " in text
    assert "still there in generation 5" in text
    assert "yes, the fittest ever seen" in text
    assert f", {best.fitness:.6g} at last" in text


def test_long_stories_are_short_and_control_no_terminal(
    imagined: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = open_checkpoint(imagined)
    steps = checkpoint.history.steps
    failed = next(step for step in steps if "\x1b" in step.failure)
    for question in (["--individual", str(failed.uid)], ["--ancestry", str(failed.uid)], []):
        text = asked(capsys, imagined, *question)
        assert all(character.isprintable() for line in text.splitlines() for character in line)
        assert len(text.splitlines()) < 60
    assert "failed: the loss is nan?[31m" in asked(
        capsys, imagined, "--individual", str(failed.uid)
    )


# ---------------------------------------------------------------- descent


def test_an_ancestry_has_everybody_once(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    best = fittest(watched.populations[-1]).uid
    shown = told(capsys, watched.folder, "--ancestry", "best")
    individuals = {one["uid"]: one for one in shown["individuals"]}
    assert len(individuals) == len(shown["individuals"]) == shown["ancestors"] + 1
    assert (shown["uid"], next(iter(individuals)), shown["left_out"]) == (best, best, [])
    for one in individuals.values():
        seen = alive(watched.populations, one["uid"])
        first = seen[min(seen)]
        assert one["parents"] == list(first.parents)
        assert (one["generation"], one["birth_fitness"]) == (first.born, first.fitness)
        assert one["survived_until"] == max(seen)
        assert all(individuals[parent]["depth"] <= one["depth"] + 1 for parent in one["parents"])
        assert all(
            individuals[parent]["generation"] < one["generation"] for parent in one["parents"]
        )
    depth = str(shown["depth"])
    lines = asked(capsys, watched.folder, "--ancestry", "best", "--depth", depth).splitlines()
    lines = lines[1 : lines.index("")]
    own = [re.match(r"[-|` ]*(\d+) ", line) for line in lines]
    referred = [re.match(r"[-|` ]*\((\d+)\)$", line) for line in lines]
    assert sorted(int(m[1]) for m in own if m) == sorted(individuals)
    assert {int(m[1]) for m in referred if m} <= individuals.keys()
    births = sum(len(one["parents"]) for one in individuals.values())
    assert len(lines) == births + 1 == sum(m is not None for m in (*own, *referred))


def test_an_ancestry_ends_at_its_depth_and_says_so(
    imagined: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = told(capsys, imagined, "--ancestry", "best")
    assert whole["depth"] > 4
    shown = told(capsys, imagined, "--ancestry", "best", "--depth", "2")
    assert {one["depth"] for one in shown["individuals"]} == {0, 1, 2}
    assert shown["ancestors"] == whole["ancestors"]
    present = {one["uid"] for one in shown["individuals"]}
    assert shown["left_out"] == sorted(
        one["uid"] for one in shown["individuals"] if not present.issuperset(one["parents"])
    )
    text = asked(capsys, imagined, "--ancestry", "best")
    note = rf"^individual {whole['uid']} and \d+ of its {whole['ancestors']} ancestors; --depth"
    assert re.search(rf"{note} {whole['depth']} goes back to the first$", text, re.MULTILINE)
    assert "`-- ..." in text
    everything = asked(capsys, imagined, "--ancestry", "best", "--depth", str(whole["depth"]))
    assert f"and its {whole['ancestors']} ancestors" in everything
    assert "..." not in everything


@pytest.mark.parametrize("depth", [[], ["--depth", "2"]])
def test_an_ancestry_is_drawn(
    watched: Watched, tmp_path: Path, capsys: pytest.CaptureFixture[str], depth: list[str]
) -> None:
    best = fittest(watched.populations[-1]).uid
    svg, png = tmp_path / "tree.svg", tmp_path / "tree.png"
    question = ["--ancestry", "best", *depth]
    shown = told(capsys, watched.folder, *question, "--output", str(svg))
    assert shown["image"] == {"path": str(svg), "depth": shown["depth"]}
    text = svg.read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    words = re.findall("<!-- (.*?) -->", text)  # beside the outlines of each text
    everybody = {str(one["uid"]) for one in shown["individuals"]}
    assert everybody <= set(words)
    assert any(word.startswith(f"Individual {best} and") for word in words)
    drawn = asked(capsys, watched.folder, *question, "--output", str(png)).splitlines()[-1]
    assert drawn.startswith(f"{png}: individual {best} and ")
    content = png.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert 200 < height < width < 3000


def test_an_image_without_display_or_matplotlib(watched: Watched, tmp_path: Path) -> None:
    program = """
        import sys
        if sys.argv[1] == "without":
            sys.modules["matplotlib"] = None
        from esgd_hpc.cli import main
        status = main(["inspect", sys.argv[2], "--ancestry", "best", "--output", sys.argv[3]])
        assert "matplotlib.pyplot" not in sys.modules and "torch" not in sys.modules
        sys.exit(status)
    """
    program = "\n".join(line.strip() for line in program.splitlines()).replace(
        "\nsys.modules", "\n    sys.modules"
    )

    def drawn(how: str) -> subprocess.CompletedProcess[str]:
        arguments = [how, str(watched.folder), str(tmp_path / f"{how}.png")]
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    good = drawn("with")
    assert (good.returncode, good.stderr) == (0, "")
    assert (tmp_path / "with.png").exists()
    bad = drawn("without")
    assert bad.returncode == 2
    assert "images need matplotlib, which is not installed; pip install" in bad.stderr
    assert len(bad.stderr.splitlines()) == 1
    assert not (tmp_path / "without.png").exists()


def test_an_image_that_the_disk_refuses(
    watched: Watched, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tree.png").mkdir()
    with pytest.raises(RunError, match=r"tree\.png: cannot be written: "):
        asked(capsys, watched.folder, "--ancestry", "0", "--output", str(tmp_path / "tree.png"))


# ---------------------------------------------------------------- two individuals


def test_a_comparison_measures_the_weights(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = open_checkpoint(watched.folder)
    first, second = checkpoint.individuals[0], checkpoint.individuals[-1]
    shown = told(capsys, watched.folder, "--compare", str(first.uid), str(second.uid))
    for one, individual in zip(shown["individuals"], (first, second), strict=True):
        assert one["uid"] == individual.uid
        assert one["fitness"] == individual.fitness
        assert one["optimizer"] == optimizer_object(individual.draw)
        assert one["in_population"] is True
    a, b = checkpoint.read_weights([first.uid, second.uid]).values()
    assert shown["distance"] == {**_distance(a, b), "equal": False}
    for tensor, entry in zip(shown["tensors"], checkpoint.layout.entries, strict=True):
        inside = slice(entry.offset, entry.offset + entry.size)
        assert (tensor["name"], tensor["kind"]) == (entry.name, entry.kind)
        assert tensor["absolute"] == _distance(a[inside], b[inside])["absolute"]
    other = told(capsys, watched.folder, "--compare", str(second.uid), str(first.uid))
    assert other["distance"]["absolute"] == shown["distance"]["absolute"]
    text = asked(capsys, watched.folder, "--compare", str(first.uid), str(second.uid))
    assert f"{shown['distance']['absolute']:.4g} over all parameters" in text


def _distance(a: Weights, b: Weights) -> dict[str, Any]:
    """Return a distance by the definition; all of these models' places are parameters."""
    wide = a.astype(np.float64), b.astype(np.float64)
    absolute = float(np.linalg.norm(wide[0] - wide[1]))
    return {
        "absolute": pytest.approx(absolute),
        "relative": pytest.approx(absolute / float(np.linalg.norm(wide[0]))),
    }


def test_a_comparison_names_what_differs_and_who_is_in_common(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = [i for i in watched.populations[2] if i.draw]
    assert len(trained) > 1
    first, second = trained[:2]
    assert first.draw
    assert second.draw
    words = ["--generation", "2", "--compare", str(first.uid), str(second.uid)]
    shown = told(capsys, watched.folder, *words)
    assert (shown["distance"], shown["tensors"]) == (None, None)
    differences = shown["differences"]
    assert differences["learning_rate"] == [first.draw.learning_rate, second.draw.learning_rate]
    assert differences["weight_decay"] == [first.draw.weight_decay, second.draw.weight_decay]
    assert "batch_size" not in differences
    assert "no longer kept" in asked(capsys, watched.folder, *words)
    child = next(i for i in watched.populations[-1] if i.parents)
    parent = child.parents[0]
    shown = told(capsys, watched.folder, "--compare", str(child.uid), str(parent))
    ancestry = told(capsys, watched.folder, "--ancestry", str(parent))
    assert shown["common_ancestors"] == sorted(one["uid"] for one in ancestry["individuals"])
    assert shown["nearest_common_ancestors"] == [parent]


def test_what_only_one_was_trained_by_is_a_difference_to_nothing(
    imagined: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lineage = Lineage(open_checkpoint(imagined).history)
    trained = next(uid for uid in lineage.births if lineage.last_known(uid).draw)
    newborn = next(uid for uid in lineage.births if not lineage.last_known(uid).draw)
    shown = told(capsys, imagined, "--compare", str(newborn), str(trained))
    draw = lineage.last_known(trained).draw
    assert draw is not None
    expected = {
        "optimizer": draw.optimizer,
        "hyperparameters.dropout": draw.hyperparameters["dropout"],
    }
    for name, value in expected.items():
        assert shown["differences"][name] == [None, value]


def test_the_lost_best_is_compared_with_what_became_of_it(
    lost: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = open_checkpoint(lost)
    assert checkpoint.champion is not None
    other = next(i for i in checkpoint.individuals if i.uid != checkpoint.champion.uid)
    shown = told(capsys, lost, "--compare", "best", str(other.uid))
    assert shown["individuals"][0]["fitness"] == checkpoint.champion.fitness
    assert [one["in_population"] for one in shown["individuals"]] == [False, True]
    expected = _distance(checkpoint.best_weights(), checkpoint.read_weights([other.uid])[other.uid])
    assert shown["distance"] == {**expected, "equal": False}


def test_a_comparison_never_holds_a_whole_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(9, 1)
    layout = make_layout(hidden=3_000_000)
    row = np.ones(layout.size, dtype=np.float32)
    write_run(tmp_path, run, layout, {i.uid: row for i in run.populations[-1]})
    uids = [str(i.uid) for i in run.populations[-1][:2]]
    told(capsys, tmp_path, "--compare", *uids)
    tracemalloc.start()
    shown = told(capsys, tmp_path, "--compare", *uids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert shown["distance"] == {"absolute": 0.0, "relative": 0.0, "equal": True}
    assert peak < row.nbytes


# ---------------------------------------------------------------- two generations


def test_two_generations_are_told_apart(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = told(capsys, watched.folder, "--compare", "generation:5", "generation:4")
    before, after = ({i.uid: i for i in watched.populations[k]} for k in (4, 5))
    assert [one["generation"] for one in shown["generations"]] == [4, 5]
    assert [one["weights_kept"] for one in shown["generations"]] == [True, True]
    rows = open_checkpoint(watched.folder).history.rows
    for one, row in zip(shown["generations"], rows[4:], strict=True):
        for name in ("best", "best_uid", "elite_average", "diversity", "worst", "best_ever"):
            assert one[name] == getattr(row, name)
    assert shown["left"] == sorted(before.keys() - after.keys())
    assert shown["came"] == sorted(after.keys() - before.keys())
    stayed = sorted(before.keys() & after.keys())
    assert [one["uid"] for one in shown["stayed"]] == stayed
    old, new = (open_checkpoint(find_generation(watched.folder, k)) for k in (4, 5))
    assert stayed
    for one in shown["stayed"]:
        uid = one["uid"]
        assert one["fitness"] == [before[uid].fitness, after[uid].fitness]
        moved = _distance(old.read_weights([uid])[uid], new.read_weights([uid])[uid])
        assert {name: one[name] for name in moved} == moved
    for name, mean in shown["mean_distance"].items():
        assert mean == pytest.approx(np.mean([one[name] for one in shown["stayed"]]))
    text = asked(capsys, watched.folder, "--compare", "generation:4", "generation:5")
    assert f"stayed  {len(stayed)}: {stayed[0]}" in text
    assert "mean distance that they moved" in text


def test_generations_that_are_gone_are_compared_without_weights(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    for earlier, later in ((0, 1), (1, 5)):
        words = ["--compare", f"generation:{earlier}", f"generation:{later}"]
        shown = told(capsys, watched.folder, *words)
        before, after = ({i.uid for i in watched.populations[k]} for k in (earlier, later))
        assert [one["weights_kept"] for one in shown["generations"]] == [False, later == 5]
        assert shown["left"] == sorted(before - after)
        assert [one["uid"] for one in shown["stayed"]] == sorted(before & after)
        assert shown["mean_distance"] is None
        assert all(one["absolute"] is None for one in shown["stayed"])
        assert "no longer kept" in asked(capsys, watched.folder, *words)


# ---------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--individual", "100000"], r"--individual 100000: no such individual up to generation 5"),
        (["--individual", "worst"], "--individual worst: expected `best` or a uid, such as "),
        (["--individual", "-1"], "--individual -1: expected `best` or a uid"),
        (["--individual", "9" * 5000], "expected `best` or a uid"),
        (["--ancestry", "100000"], "--ancestry 100000: no such individual"),
        (["--ancestry", "0", "--depth", "0"], "--depth 0: must be at least 1"),
        (["--depth", "3"], "--depth 3: only with --ancestry"),
        (["--individual", "0", "--output", "x.png"], r"--output x\.png: only with --ancestry"),
        (["--ancestry", "0", "--output", "x.pdf"], r"must end in \.png or \.svg"),
        (["--ancestry", "0", "--output", "none/x.png"], "does not exist; make it first"),
        (["--individual", "0", "--ancestry", "0"], "not allowed with argument --individual"),
        (["--compare", "0", "1", "--ancestry", "0"], "not allowed with argument --compare"),
        (["--compare", "0", "0"], "both are individual 0; name two individuals"),
        (["--compare", "best", "100000"], "--compare 100000: no such individual"),
        (["--compare", "0", "generation:4"], "expected two individuals, such as best 12, or two"),
        (["--compare", "generation:x", "generation:4"], "expected two individuals"),
        (["--compare", "generation:4", "generation:4"], "the same generation"),
        (["--compare", "generation:4", "generation:9"], "no generation 9 in this folder"),
        (
            ["--compare", "generation:4", "generation:5", "--generation", "5"],
            "--generation 5: --compare generation:4 generation:5 already names generations",
        ),
    ],
)
def test_questions_without_answer_are_bad_input(
    watched: Watched, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        asked(capsys, watched.folder, *words)
    assert capsys.readouterr().out == ""


def test_unknown_uids_are_answered_with_near_ones(
    watched: Watched, capsys: pytest.CaptureFixture[str]
) -> None:
    history = open_checkpoint(watched.folder).history
    selected = {birth.uid for birth in history.births}
    generation, child = next(
        (k, child)
        for k, children in enumerate(history.offspring)
        for child in children
        if child.uid not in selected
    )
    message = f"{child.uid}: a child of generation {generation} that was never selected"
    with pytest.raises(InputError, match=message):
        asked(capsys, watched.folder, "--individual", str(child.uid))
    near = ", ".join(map(str, sorted(selected)[-5:]))
    with pytest.raises(InputError, match=f"the nearest are {near}, and `best` works as well$"):
        asked(capsys, watched.folder, "--individual", "99999")


@pytest.mark.parametrize(
    "words",
    [
        ["--individual", "0"],
        ["--ancestry", "0"],
        ["--compare", "best", "0"],
        ["--generation", "0"],
        ["--compare", "generation:1", "generation:2"],
    ],
)
def test_older_runs_say_that_they_have_no_lineage(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(InputError, match=r"no lineage in this checkpoint \(format 1;") as raised:
        asked(capsys, OLD, *words)
    assert "\n" not in str(raised.value)
    shown = told(capsys, OLD)
    assert shown["best"]["in_population"] is True
    assert set(shown["history"]["diversity"]) == {None}


def test_damaged_weights_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(2, 2)
    layout = make_layout()
    weights = {i.uid: make_weights(i.uid, layout) for i in run.populations[-1]}
    write_run(tmp_path, run, layout, weights)
    first, second = (str(i.uid) for i in run.populations[-1][:2])
    path = tmp_path / "gen_000002" / "leader_00000.h5"
    content = bytearray(path.read_bytes())
    place = content.index(weights[int(second)].tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"the weights of individual {second} are damaged"):
        told(capsys, tmp_path, "--compare", first, second)


@pytest.mark.usefixtures("watched")  # the first run of a process changes its environment
def test_a_run_that_began_in_format_1_has_the_lineage_since_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(OLD, run, symlinks=True)
    esgd_hpc.run(esgd_hpc.load_recipe(str(run / "recipe.toml")), MPI.COMM_SELF, output=run)
    checkpoint = open_checkpoint(run)
    history = checkpoint.history
    assert len(history.rows) == len(history.survivors) == len(history.offspring) == 5
    assert [bool(members) for members in history.survivors] == [False] * 3 + [True] * 2
    text = asked(capsys, run, "--ancestry", "best", "--output", str(tmp_path / "tree.svg"))
    assert "unknown" in text
    assert "anchor" not in text
    with pytest.raises(InputError, match="the run began in format 1, which has no lineage"):
        asked(capsys, run, "--generation", "1")
