"""The files of real runs, opened with xarray and silx: they show what our own reader reads."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import msgspec
import numpy as np
import pytest
import silx.io
import xarray as xr
from mpi4py import MPI
from silx.io.nxdata import NXdata, get_default  # type: ignore[attr-defined]
from torch import Tensor, nn

import esgd_hpc
from esgd_hpc.checkpoint.history_file import read_history_file, write_history_file
from esgd_hpc.checkpoint.reader import Checkpoint, open_checkpoint
from esgd_hpc.history import OPTIMIZERS, History, optimizer_of
from esgd_hpc.population import ORIGINS
from esgd_hpc.tasks.base import Batch
from esgd_hpc.tasks.digits import DigitsTask
from unit.test_checkpoint import make_history

SMALL = [
    *("population.parents=5", "population.offspring=7", "generations=4"),
    *("task_options.hidden=8", "evolution.parents_per_child=[1, 2]", "seed=9"),
]
BAND = ["lower_quartile", "median", "upper_quartile", "worst", "elite_average"]


class Run(NamedTuple):
    """A run, and what our reader finds in it."""

    folder: Path
    checkpoint: Checkpoint
    history: History

    @property
    def history_file(self) -> Path:
        return self.folder / "history.h5"

    @property
    def population_file(self) -> Path:
        return self.folder / "latest" / "population.h5"


class HalfFail(DigitsTask):
    """Networks whose first weight is above 0 have no finite loss."""

    def score(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        scores = dict(super().score(model, batch))
        if len(batch[0]) > 1 and next(model.parameters()).flatten()[0] > 0:
            scores["loss"] = scores["loss"] * math.nan
        return scores


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Return a common run, one whose initial individuals fail in part, and a single network's."""
    tasks = {"esgd": None, "failing": HalfFail(hidden=8, validation_fraction=0.2), "single": None}
    changes = {
        "esgd": [],
        "failing": ['population.initialization="random"'],
        "single": ['method="single"'],
    }
    found = {}
    for name, task in tasks.items():
        folder = tmp_path_factory.mktemp(name)
        recipe = esgd_hpc.load_recipe("digits", [*SMALL, *changes[name]])
        esgd_hpc.run(recipe, MPI.COMM_SELF, task=task, output=folder)
        checkpoint = open_checkpoint(folder)
        found[name] = Run(folder, checkpoint, checkpoint.history)
    return found


@pytest.fixture(params=["esgd", "failing", "single"])
def run(request: pytest.FixtureRequest, runs: dict[str, Run]) -> Run:
    """Return each of the runs."""
    return runs[request.param]


def rows_of(history: History, name: str) -> list[Any]:
    """Return one number of each generation."""
    return [getattr(row, name) for row in history.rows]


def same(shown: Any, expected: Any) -> bool:
    """Tell whether numbers are the same, NaN and infinity included."""
    return np.array_equal(np.asarray(shown), np.asarray(expected), equal_nan=True)


def words(column: xr.DataArray) -> list[Any]:
    """Return what the flags of a column mean, by the CF conventions alone."""
    flags = column.attrs["flag_values"].tolist()
    meaning = dict(zip(flags, column.attrs["flag_meanings"].split(), strict=True))
    found: list[Any] = np.vectorize(meaning.__getitem__, otypes=[object])(column.values).tolist()
    return found


# ---------------------------------------------------------------- xarray


def opened(path: Path, group: str | None = None) -> xr.Dataset:
    """Return a group as a user of xarray opens it, all of it in memory."""
    with xr.open_dataset(path, engine="h5netcdf", group=group) as dataset:
        return dataset.load()


def test_the_failing_run_has_failed_individuals(runs: dict[str, Run]) -> None:
    first = runs["failing"].history.rows[0]
    assert math.isfinite(first.best)
    assert math.isinf(first.worst)


def test_xarray_shows_the_generations(run: Run) -> None:
    dataset = opened(run.history_file)
    rows = run.history.rows
    offspring = max(len(children) for children in run.history.offspring)
    assert dict(dataset.sizes) == {
        "generation": len(rows),
        "survivor": len(run.history.survivors[0]),
        "offspring": offspring,
        "parent": 2 if offspring else 1,
    }
    assert dataset.generation.values.tolist() == rows_of(run.history, "generation")
    for name in ("best", "best_ever", *BAND, "elite_offspring_fraction", "best_learning_rate"):
        assert dataset[name].dims == ("generation",)
        assert same(dataset[name], rows_of(run.history, name)), name
        assert dataset[name].attrs["long_name"]
    assert same(dataset.diversity, rows_of(run.history, "diversity"))
    for name in OPTIMIZERS:
        distances = [row.diversity_by_optimizer.get(name, math.nan) for row in rows]
        assert same(dataset[f"diversity_{name}"], distances)
        counts = [row.individuals_by_optimizer[name] for row in rows]
        assert same(dataset[f"individuals_{name}"], counts)
    seconds = [row.seconds.get("sgd", math.nan) for row in rows]
    assert same(dataset.seconds_sgd, seconds)
    assert dataset.seconds_sgd.attrs["units"] == "s"
    assert words(dataset.best_optimizer) == rows_of(run.history, "best_optimizer")
    assert words(dataset.theorem_1_holds) == ["true"] * len(rows)


def test_xarray_shows_every_survivor(run: Run) -> None:
    dataset = opened(run.history_file)
    survivors = run.history.survivors
    assert dataset.survivor_uid.dtype == np.int64
    for name in ("uid", "fitness", "learning_rate"):
        column = dataset[f"survivor_{name}"]
        assert column.dims == ("generation", "survivor")
        assert same(column, [[getattr(member, name) for member in row] for row in survivors])
    for name in ("origin", "optimizer"):
        column = dataset[f"survivor_{name}"]
        assert words(column) == [[getattr(member, name) for member in row] for row in survivors]


def test_xarray_shows_every_child_and_where_there_is_none(runs: dict[str, Run]) -> None:
    dataset = opened(runs["esgd"].history_file)
    offspring = runs["esgd"].history.offspring
    assert [len(row) for row in offspring] == [0, 7, 7, 7, 7]
    assert dataset.offspring_uid.dtype == np.int64
    assert (dataset.offspring_uid[0] == -1).all()
    assert np.isnan(dataset.offspring_fitness[0]).all()
    assert words(dataset.offspring_selected)[0] == ["absent"] * 7
    for k in range(1, 5):
        children = dataset.sel(generation=k)
        assert same(children.offspring_uid, [child.uid for child in offspring[k]])
        assert same(children.offspring_fitness, [child.fitness for child in offspring[k]])
        assert same(children.offspring_sigma, [child.sigma for child in offspring[k]])
        selected = ["true" if child.selected else "false" for child in offspring[k]]
        assert words(children.offspring_selected) == selected
        parents = [[uid for uid in row if uid != -1] for row in children.offspring_parents.values]
        assert parents == [list(child.parents) for child in offspring[k]]


def test_xarray_opens_the_tables_of_the_lineage(run: Run) -> None:
    births, steps = run.history.births, run.history.steps
    table = opened(run.history_file, "lineage/individual")
    assert table.sizes["individual"] == len(births)
    assert same(table.uid, [birth.uid for birth in births])
    assert same(table.fitness, [birth.fitness for birth in births])
    assert table.noise_seed.values.tolist() == [birth.noise_seed for birth in births]
    assert words(table.origin) == [birth.origin for birth in births]
    table = opened(run.history_file, "lineage/step")
    assert table.sizes == {"step": len(steps)}
    assert same(table.generation, [step.generation for step in steps])
    assert same(table.learning_rate, [step.draw.learning_rate for step in steps])
    assert same(table.fitness, [step.fitness for step in steps])
    assert same(table.back_offs, [step.back_offs for step in steps])
    assert table.failure.values.tolist() == [step.failure for step in steps]
    assert opened(run.history_file, "lineage/change").sizes == {"change": 0}


def test_xarray_shows_a_changed_key_as_text(tmp_path: Path) -> None:
    path = tmp_path / "history.h5"
    write_history_file(path, make_history(3), "{}", {})
    table = opened(path, "lineage/change")
    assert [table[name].item() for name in ("key", "old", "new")] == ["sgd.epochs", "1", "[1, 2]"]


def test_xarray_opens_the_population(run: Run) -> None:
    dataset = opened(run.population_file)
    individuals = run.checkpoint.individuals
    uids = [individual.uid for individual in individuals]
    assert dataset.uid.values.tolist() == uids
    assert dataset.sizes["place"] == run.checkpoint.layout.size
    assert "place" not in dataset.variables
    assert same(dataset.fitness, [individual.fitness for individual in individuals])
    assert same(dataset.born, [individual.born for individual in individuals])
    assert words(dataset.optimizer) == [optimizer_of(individual) for individual in individuals]
    assert words(dataset.origin) == [individual.origin for individual in individuals]
    assert dataset.noise_seed.values.tolist() == [i.noise_seed for i in individuals]
    weights = run.checkpoint.read_weights(uids)
    assert same(dataset.weights, [weights[uid] for uid in uids])
    histories = [opened(run.population_file, "history"), opened(run.history_file)]
    for history in histories:
        assert "best" in history
    first, second = ([h[name] for name in h if _is_lasting(name)] for h in histories)
    assert all(a.identical(b) for a, b in zip(first, second, strict=True))


def _is_lasting(column: Any) -> bool:
    """Tell whether a column of a history is the same in every file that has it."""
    return column != "recipe" and not column.startswith("seconds_")


def test_xarray_opens_whole_files_as_trees(run: Run) -> None:
    for path in (run.history_file, run.population_file):
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            assert "title" in tree["plots/fitness"].variables


def test_a_dimension_without_values_takes_no_room(runs: dict[str, Run]) -> None:
    with h5py.File(runs["esgd"].population_file) as file:
        assert file["place"].shape == (runs["esgd"].checkpoint.layout.size,)
        assert file["place"].id.get_storage_size() == 0


# ---------------------------------------------------------------- silx


@contextmanager
def silx_file(path: Path) -> Iterator[Any]:
    """Open a file as silx does."""
    with silx.io.open(str(path)) as file:  # type: ignore[attr-defined, no-untyped-call]
        yield file


def plot(group: Any) -> Any:
    """Return what silx sees in an NXdata group."""
    data = NXdata(group)
    assert data.is_valid, (group.name, data.issues)
    return data


@pytest.fixture(params=["history_file", "population_file"])
def file(request: pytest.FixtureRequest, run: Run) -> Iterator[Any]:
    """Return each file of each run."""
    with silx_file(getattr(run, request.param)) as found:
        yield found


def plots_in(group: Any) -> Iterator[Any]:
    """Yield all NXdata groups."""
    if group.attrs.get("NX_class") == "NXdata":
        yield group
    for child in group.values():
        if isinstance(child, h5py.Group):
            yield from plots_in(child)


def test_all_plots_are_valid_labelled_and_of_direct_children(file: Any) -> None:
    groups = list(plots_in(file))
    assert len(groups) > 3
    for group in groups:
        data = plot(group)
        assert data.title, group.name
        axes = data.axes_dataset_names
        for name in (data.signal_dataset_name, *data.auxiliary_signals_dataset_names, *axes):
            link = group.get(name, getlink=True)
            assert isinstance(link, h5py.HardLink), (group.name, name)
            assert group[name].dtype.kind in "if", (group.name, name)
        labels = [data.signal_name, *data.auxiliary_signals_names]
        assert len(set(labels)) == len(labels), labels  # silx tells curves apart by them


def test_silx_shows_the_fitness_first(run: Run) -> None:
    with silx_file(run.history_file) as found:
        data = get_default(found)
        assert data is not None
        assert data.group.name == "/plots/fitness"
        assert data.title.startswith("Fitness: best, quartiles, worst, average of the elite")
        assert "task digits" in data.title
        assert data.signal_name == "fitness of the best"
        assert data.axes_names == ["generation"]
        assert same(data.axes[0], rows_of(run.history, "generation"))
        assert same(data.signal, rows_of(run.history, "best"))
        assert data.auxiliary_signals_dataset_names == BAND
        for name, signal in zip(BAND, data.auxiliary_signals, strict=True):
            assert same(signal, rows_of(run.history, name))


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("elite", ["elite_offspring_fraction"]),
        ("learning_rate", ["best_learning_rate"]),
        ("diversity", ["diversity", *(f"diversity_{name}" for name in sorted(OPTIMIZERS))]),
        ("optimizers", [f"individuals_{name}" for name in sorted(OPTIMIZERS)]),
    ],
)
def test_silx_shows_the_other_curves(run: Run, name: str, columns: list[str]) -> None:
    dataset = opened(run.history_file)  # compared with the history above
    with silx_file(run.history_file) as found:
        data = plot(found["plots"][name])
        names = [data.signal_dataset_name, *data.auxiliary_signals_dataset_names]
        assert names == columns
        if len(columns) > 1:  # the title says which curve is which
            words = ["all" if c == "diversity" else c.rpartition("_")[2] for c in columns]
            assert data.title.partition("\n")[0].endswith(f": {', '.join(words)}")
        for column, signal in zip(names, [data.signal, *data.auxiliary_signals], strict=True):
            assert same(signal, dataset[column])
        assert data.axes_dataset_names == ["generation"]
        is_rate = name == "learning_rate"
        assert data.plot_style.signal_scale_type == ("log" if is_rate else "linear")


def test_the_phase_that_takes_longest_comes_first(run: Run) -> None:
    phases = {phase for row in run.history.rows for phase in row.seconds}
    total = {p: sum(row.seconds.get(p, 0.0) for row in run.history.rows) for p in phases}
    with silx_file(run.population_file) as found:
        data = plot(found["history/plots/seconds"])
        names = [data.signal_dataset_name, *data.auxiliary_signals_dataset_names]
        assert set(names) == {f"seconds_{phase}" for phase in phases}
        assert names[0] == f"seconds_{max(total, key=total.__getitem__)}"
        seconds = [row.seconds.get("sgd", math.nan) for row in run.history.rows]
        assert same(data.group["seconds_sgd"], seconds)


def test_silx_shows_the_survivors_as_an_image(run: Run) -> None:
    with silx_file(run.history_file) as found:
        data = plot(found["plots/survivors"])
        fitness = [[member.fitness for member in row] for row in run.history.survivors]
        assert same(data.signal, fitness)
        assert data.signal_name == "fitness"
        assert data.auxiliary_signals_names == ["learning rate", "optimizer", "origin"]
        assert data.axes_names == ["generation", "survivor, in uid order"]
        assert data.plot_style.signal_scale_type == "log"


def test_silx_shows_the_children_where_there_are_any(runs: dict[str, Run]) -> None:
    for name, run in runs.items():
        with silx_file(run.history_file) as found:
            if name == "single":
                assert "children" not in found["plots"]
                continue
            data = plot(found["plots/children"])
            assert np.isnan(data.signal[0]).all()
            fitness = [[child.fitness for child in row] for row in run.history.offspring[1:]]
            assert same(data.signal[1:], fitness)


def test_silx_shows_the_sgd_steps_as_a_scatter_of_learning_rates(run: Run) -> None:
    with silx_file(run.history_file) as found:
        data = plot(found["lineage/step"])
        assert data.axes_names == ["generation", "learning rate"]
        assert same(data.axes[0], [step.generation for step in run.history.steps])
        assert same(data.axes[1], [step.draw.learning_rate for step in run.history.steps])
        assert same(data.signal, [step.fitness for step in run.history.steps])
        assert data.plot_style.axes_scale_types == ("linear", "log")
        data = plot(found["lineage/individual"])
        assert data.axes_names == ["generation of birth", "fitness at birth"]
        assert same(data.axes[1], [birth.fitness for birth in run.history.births])


def test_silx_shows_the_fitness_of_a_population_first(run: Run) -> None:
    individuals = run.checkpoint.individuals
    with silx_file(run.population_file) as found:
        data = get_default(found)
        assert data is not None
        assert data.title.startswith("Fitness in generation 4\n(task digits")
        assert (data.signal_name, data.axes_names) == ("fitness", ["uid"])
        assert same(data.axes[0], [individual.uid for individual in individuals])
        assert same(data.signal, [individual.fitness for individual in individuals])


def test_scales_are_linear_where_fitness_is_negative(tmp_path: Path) -> None:
    history = make_history(3)
    history.survivors = [
        tuple(msgspec.structs.replace(member, fitness=-1.0) for member in row)
        for row in history.survivors
    ]
    path = tmp_path / "history.h5"
    write_history_file(path, history, "{}", {})
    with silx_file(path) as found:
        style = plot(found["plots/survivors"]).plot_style
        assert style.signal_scale_type == "linear"


# ---------------------------------------------------------------- where a file comes from


def test_a_file_says_what_it_is_and_what_made_it(run: Run) -> None:
    for path, what in (
        (run.history_file, "History of a population"),
        (run.population_file, "Population of generation 4"),
    ):
        dataset = opened(path)
        method = run.checkpoint.recipe["method"]
        assert dataset.attrs["title"] == f"{what}: task digits, method {method}, seed 9"
        assert dataset.attrs["creator"] == "esgd-hpc"
        assert (dataset.attrs["task"], dataset.attrs["method"]) == ("digits", method)
        assert dataset.attrs["seed"] == 9
        assert msgspec.json.decode(dataset.recipe.item()) == run.checkpoint.recipe
        provenance = opened(path, "provenance").attrs
        assert provenance == run.checkpoint.provenance
        assert {"command", "host", "started", "python", "torch", "esgd-hpc"} <= set(provenance)


def test_generations_from_before_the_lineage_are_absent(tmp_path: Path) -> None:
    history = make_history(5)
    later = msgspec.structs.replace(
        history, survivors=history.survivors[2:], offspring=history.offspring[2:]
    )
    path = tmp_path / "history.h5"
    write_history_file(path, later, "{}", {})
    again = read_history_file(path)
    assert [*again.survivors[:2], *again.offspring[:2]] == [(), (), (), ()]
    assert repr(again.survivors[2:]) == repr(history.survivors[2:])
    assert repr(again.offspring[2:]) == repr(history.offspring[2:])
    assert words(opened(path).survivor_origin)[0] == ["absent"] * 4


def test_all_origins_and_optimizers_have_a_word(runs: dict[str, Run]) -> None:
    dataset = opened(runs["esgd"].history_file)
    assert dataset.survivor_origin.attrs["flag_meanings"].split() == ["absent", *ORIGINS]
    assert dataset.survivor_optimizer.attrs["flag_meanings"].split() == ["absent", *OPTIMIZERS]
