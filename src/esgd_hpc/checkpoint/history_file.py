"""How the history of a run is stored: columns that viewers draw, and tables of its lineage.

    generation [G], survivor [mu], offspring [lambda], parent [rho]   dimension scales
    best, elite_average, ...        [G]
    survivor_uid, survivor_...      [G, mu]        the population at the end of each generation
    offspring_uid, offspring_...    [G, lambda]    its children; rows that are too short end in
                                                   uid -1 and NaN
    offspring_parents               [G, lambda, rho]
    lineage/individual/             one row an individual ever selected
    lineage/step/                   one row an SGD step of an individual
    lineage/change/                 one row a key of the recipe that was changed on purpose
    plots/                          what silx and h5web draw, see `history_plots`

xarray opens the root and each table. history.h5 has it at its root, population.h5 in `history`.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from esgd_hpc.checkpoint import files, hdf5, nexus
from esgd_hpc.checkpoint.history_plots import write_plots
from esgd_hpc.checkpoint.tables import (
    NO_UID,
    TRUTH,
    describe_parents,
    padded,
    read_table,
    write_table,
)
from esgd_hpc.errors import InputError
from esgd_hpc.history import (
    OPTIMIZERS,
    TRAFFIC,
    Birth,
    GenerationRow,
    History,
    Member,
    Offspring,
    RecipeChange,
    SgdStep,
)
from esgd_hpc.population import ORIGINS

_MEANINGS = {
    "best": "fitness of the best",
    "best_ever": "fitness of the best so far",
    "elite_average": "average fitness of the elite",
    "lower_quartile": "lower quartile of the fitness",
    "median": "median of the fitness",
    "upper_quartile": "upper quartile of the fitness",
    "worst": "fitness of the worst",
    "elite_offspring_fraction": "share of children of this generation in the elite",
    "best_learning_rate": "learning rate of the best",
    "diversity": "mean distance of two individuals",
}
"""Columns of float64 and what viewers call them."""

_SINCE_FORMAT_2 = ("best_ever", "lower_quartile", "upper_quartile", "diversity")

_SECONDS = "seconds_"
_BYTES = "bytes_"
_DIVERSITY = "diversity_"
_INDIVIDUALS = "individuals_"
_PHASE = re.compile(r"[a-z_]+")
_MAX_PHASES = 100
_TABLES: dict[str, tuple[str, type[Any]]] = {
    "individual": ("births", Birth),
    "step": ("steps", SgdStep),
    "change": ("changes", RecipeChange),
}
"""Group in `lineage`, which is also its dimension, to the part of the history in it."""


def write_history_file(
    path: Path, history: History, recipe: str, provenance: Mapping[str, str]
) -> None:
    """Replace history.h5 in one step; a killed job leaves the old one or the new one.

    `recipe` is JSON. Raises RunError where the disk refuses.
    """
    new = path.with_name(path.name + files.TEMPORARY_SUFFIX)
    with hdf5.creating(new) as file:
        file.attrs["format"] = files.FORMAT_VERSION
        data = json.loads(recipe)
        nexus.describe(file, "History of a population", data, provenance)
        write_history(file, history, nexus.run_name(data))
        hdf5.write_text(file, "recipe", recipe)
    new.replace(path)
    files.fsync_folder(path.parent)


def read_history_file(path: Path) -> History:
    """Return what a history.h5 holds. Raises InputError where it is not one."""
    with hdf5.reading(path) as file:
        version = hdf5.read_number(file, "format") if "format" in file.attrs else 1
        return read_history(file, version)


# Writing ------------------------------------------------------------------------------------------


def write_history(group: h5py.Group, history: History, run: str) -> None:
    """Write all of a history into a group. `run` is the name of the run in the titles of plots."""
    generation = group.create_dataset(
        "generation", data=_int64([row.generation for row in history.rows])
    )
    generation.make_scale("generation")
    for column in _write_rows(group, history.rows):
        column.dims[0].attach_scale(generation)
    num_parents = most_parents(history)
    if history.survivors:
        _write_survivors(group, _aligned(history.survivors, history.rows))
        _write_offspring(group, _aligned(history.offspring, history.rows), num_parents)
    lineage = group.create_group("lineage")
    for name, (attribute, kind) in _TABLES.items():
        records = getattr(history, attribute)
        write_table(lineage.create_group(name), name, kind, records, num_parents)
    write_plots(group, run)


def most_parents(history: History) -> int:
    """Return the length of the dimension `parent`, which is the same everywhere in a file.

    xarray's trees ask for that.
    """
    born = [birth.parents for birth in history.births]
    children = [child.parents for row in history.offspring for child in row]
    return max([1, *map(len, born), *map(len, children)])


def _aligned(details: Sequence[tuple[Any, ...]], rows: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Return one entry a row; a run that began in format 1 has none for its first rows."""
    return [()] * (len(rows) - len(details)) + list(details)


def _write_rows(group: h5py.Group, rows: Sequence[GenerationRow]) -> list[h5py.Dataset]:
    def floats(name: str, values: Sequence[float], meaning: str) -> h5py.Dataset:
        column = group.create_dataset(name, data=_float64(values))
        column.attrs["long_name"] = meaning
        return column

    columns = [
        floats(name, [getattr(row, name) for row in rows], meaning)
        for name, meaning in _MEANINGS.items()
    ]
    columns.append(group.create_dataset("best_uid", data=_int64([row.best_uid for row in rows])))
    holds = [int(row.theorem_1_holds) for row in rows]
    columns.append(hdf5.write_flags(group, "theorem_1_holds", holds, TRUTH))
    optimizers = [OPTIMIZERS.index(row.best_optimizer) for row in rows]
    columns.append(hdf5.write_flags(group, "best_optimizer", optimizers, OPTIMIZERS))
    for optimizer in OPTIMIZERS:
        counts = [row.individuals_by_optimizer.get(optimizer, 0) for row in rows]
        columns.append(group.create_dataset(_INDIVIDUALS + optimizer, data=_int64(counts)))
        who = f"last trained by {optimizer}" if optimizer != "none" else "not trained yet"
        columns[-1].attrs["long_name"] = f"individuals {who}"
        distances = [row.diversity_by_optimizer.get(optimizer, math.nan) for row in rows]
        meaning = f"mean distance of two individuals {who}"
        columns.append(floats(_DIVERSITY + optimizer, distances, meaning))
    for phase in sorted({phase for row in rows for phase in row.seconds}):
        if not _PHASE.fullmatch(phase):
            raise ValueError(f"phase {phase!r}: expected lower-case letters and underscores")
        seconds = [row.seconds.get(phase, math.nan) for row in rows]
        columns.append(floats(_SECONDS + phase, seconds, f"wall time of {phase}"))
        columns[-1].attrs["units"] = "s"
    for name in [n for n in TRAFFIC if any(n in row.traffic for row in rows)]:
        values = [row.traffic.get(name, 0) for row in rows]
        columns.append(group.create_dataset(_BYTES + name, data=_int64(values)))
        columns[-1].attrs["long_name"] = f"weights between groups, {name}"
        columns[-1].attrs["units"] = "byte"
    return columns


def _write_survivors(group: h5py.Group, survivors: Sequence[Sequence[Member]]) -> None:
    table = _Rectangle(group, "survivor", "survivor, in uid order", survivors)
    table.write_uids(lambda member: member.uid)
    table.write("fitness", lambda member: member.fitness)
    table.write("learning_rate", lambda member: member.learning_rate)
    table.write_flags("origin", ORIGINS, lambda member: member.origin)
    table.write_flags("optimizer", OPTIMIZERS, lambda member: member.optimizer)


def _write_offspring(
    group: h5py.Group, offspring: Sequence[Sequence[Offspring]], num_parents: int
) -> None:
    table = _Rectangle(group, "offspring", "child, in uid order", offspring)
    table.write_uids(lambda child: child.uid)
    table.write("fitness", lambda child: child.fitness)
    table.write("sigma", lambda child: child.sigma)
    table.write_flags("selected", TRUTH, lambda child: TRUTH[child.selected])
    parents = np.full((*table.shape, num_parents), -1, dtype="<i8")
    lists = [child.parents for row in offspring for child in row]
    parents[table.present] = padded(lists, num_parents)
    describe_parents(table.create("parents", parents), 2)


class _Rectangle:
    """Rows of records of different lengths, as columns [G, longest row] with fill values."""

    def __init__(
        self, group: h5py.Group, dimension: str, long_name: str, rows: Sequence[Sequence[Any]]
    ) -> None:
        self._group, self._dimension, self._rows = group, dimension, rows
        self.shape = (len(rows), max(map(len, rows)))
        places = np.arange(self.shape[1], dtype="<i8")
        scale = group.create_dataset(dimension, data=places)
        scale.make_scale(dimension)
        scale.attrs["long_name"] = long_name
        self.present = places < _int64([len(row) for row in rows])[:, None]
        """Where there is a record: bool [G, longest row]."""

    def write_uids(self, value: Any) -> None:
        column = self.create("uid", self._filled("<i8", -1, value))
        column.attrs["comment"] = NO_UID

    def write(self, name: str, value: Any) -> None:
        self.create(name, self._filled("<f8", math.nan, value))

    def write_flags(self, name: str, words: Sequence[str], value: Any) -> None:
        data = self._filled("i1", -1, lambda record: words.index(value(record)))
        hdf5.describe_flags(self.create(name, data), ("absent", *words), first=-1)

    def create(self, name: str, data: np.ndarray) -> h5py.Dataset:
        column = self._group.create_dataset(f"{self._dimension}_{name}", data=data)
        column.attrs["long_name"] = name.replace("_", " ")
        column.dims[0].attach_scale(self._group["generation"])
        column.dims[1].attach_scale(self._group[self._dimension])
        return column

    def _filled(self, dtype: str, fill: float, value: Any) -> np.ndarray:
        data = np.full(self.shape, fill, dtype=dtype)
        data[self.present] = [value(record) for row in self._rows for record in row]
        return data


def _int64(values: Sequence[int]) -> np.ndarray:
    return np.asarray(values, dtype="<i8")


def _float64(values: Sequence[float]) -> np.ndarray:
    return np.asarray(values, dtype="<f8")


# Reading ------------------------------------------------------------------------------------------


def read_history(group: h5py.Group, version: int) -> History:
    """Return the history in a group. Format 1 has rows alone; what they lack is NaN or empty."""
    rows = _read_rows(group, version)
    if version == 1:
        return History(rows=rows)
    lineage = hdf5.read_group(group, "lineage")
    tables = {
        attribute: read_table(hdf5.read_group(lineage, name), name, kind)
        for name, (attribute, kind) in _TABLES.items()
    }
    has_details = "survivor" in group
    return History(
        rows=rows,
        survivors=_read_survivors(group, len(rows)) if has_details else [],
        offspring=_read_offspring(group, len(rows)) if has_details else [],
        **tables,
    )


def _read_rows(group: h5py.Group, version: int) -> list[GenerationRow]:
    generations = hdf5.read_array(group, "generation", "<i8").tolist()
    shape = (len(generations),)

    def column(name: str, dtype: str = "<f8") -> list[Any]:
        return list(hdf5.read_array(group, name, dtype, shape).tolist())

    missing = _SINCE_FORMAT_2 if version == 1 else ()
    floats = {name: column(name) for name in _MEANINGS if name not in missing}
    if version == 1:
        floats |= {name: [math.nan] * len(generations) for name in missing}
        floats["best_ever"] = list(accumulate(floats["best"], min))
    best_uids = column("best_uid", "<i8")
    holds = hdf5.read_flags(group, "theorem_1_holds", len(generations), TRUTH)
    optimizers = hdf5.read_flags(group, "best_optimizer", len(generations), OPTIMIZERS)
    phases = [name for name in group if name.startswith(_SECONDS)]
    if len(phases) > _MAX_PHASES:  # hard links could make any number of them
        raise InputError(f"{group.file.filename}: {len(phases)} columns of {_SECONDS}*")
    seconds = {name.removeprefix(_SECONDS): column(name) for name in phases}
    traffic = {name: column(_BYTES + name, "<i8") for name in TRAFFIC if _BYTES + name in group}
    names = [] if version == 1 else OPTIMIZERS
    diversity = {name: column(_DIVERSITY + name) for name in names}
    counts = {name: column(_INDIVIDUALS + name, "<i8") for name in names}
    return [
        GenerationRow(
            generation=generation,
            **{name: values[row] for name, values in floats.items()},
            best_uid=best_uids[row],
            theorem_1_holds=holds[row] == "true",
            seconds=_known(seconds, row),
            traffic={name: values[row] for name, values in traffic.items() if values[row]},
            best_optimizer=optimizers[row],  # type: ignore[arg-type]
            diversity_by_optimizer=_known(diversity, row),
            individuals_by_optimizer={name: values[row] for name, values in counts.items()},
        )
        for row, generation in enumerate(generations)
    ]


def _known(columns: Mapping[Any, Sequence[float]], row: int) -> dict[Any, float]:
    return {name: v[row] for name, v in columns.items() if not math.isnan(v[row])}


def _read_survivors(group: h5py.Group, length: int) -> list[tuple[Member, ...]]:
    uids = _read_uids(group, "survivor", length)
    fitness = hdf5.read_array(group, "survivor_fitness", "<f8", uids.shape)
    rates = hdf5.read_array(group, "survivor_learning_rate", "<f8", uids.shape)
    origins = _read_words(group, "survivor_origin", uids, ORIGINS)
    optimizers = _read_words(group, "survivor_optimizer", uids, OPTIMIZERS)
    return [
        tuple(
            Member(
                uid=int(uids[g, n]),
                fitness=float(fitness[g, n]),
                origin=origins[g][n],
                optimizer=optimizers[g][n],
                learning_rate=float(rates[g, n]),
            )
            for n in range(uids.shape[1])
            if uids[g, n] != -1
        )
        for g in range(length)
    ]


def _read_offspring(group: h5py.Group, length: int) -> list[tuple[Offspring, ...]]:
    uids = _read_uids(group, "offspring", length)
    fitness = hdf5.read_array(group, "offspring_fitness", "<f8", uids.shape)
    sigmas = hdf5.read_array(group, "offspring_sigma", "<f8", uids.shape)
    selected = _read_words(group, "offspring_selected", uids, TRUTH)
    width = len(hdf5.read_array(group, "parent", "<i8"))
    parents = hdf5.read_array(group, "offspring_parents", "<i8", (*uids.shape, width))
    return [
        tuple(
            Offspring(
                uid=int(uids[g, n]),
                fitness=float(fitness[g, n]),
                parents=tuple(uid for uid in parents[g, n].tolist() if uid != -1),
                sigma=float(sigmas[g, n]),
                selected=selected[g][n] == "true",
            )
            for n in range(uids.shape[1])
            if uids[g, n] != -1
        )
        for g in range(length)
    ]


def _read_uids(group: h5py.Group, dimension: str, length: int) -> np.ndarray:
    width = len(hdf5.read_array(group, dimension, "<i8"))
    return hdf5.read_array(group, f"{dimension}_uid", "<i8", (length, width))


def _read_words(
    group: h5py.Group, name: str, uids: np.ndarray, words: Sequence[str]
) -> list[list[Any]]:
    flags = hdf5.read_array(group, name, "i1", uids.shape)
    if ((flags < 0) | (flags >= len(words)))[uids != -1].any():
        raise InputError(f"{group.file.filename}: {name}: a flag without a meaning")
    return [[words[flag] if flag >= 0 else "" for flag in row] for row in flags.tolist()]
