"""How the history of a run is stored: one row per generation, in columns that viewers draw.

The root has one dataset per column with the dimension scale `generation`, which xarray opens;
`/plots` has NeXus NXdata groups made of hard links, which h5web and silx draw at once.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from esgd_hpc.checkpoint import files, hdf5
from esgd_hpc.population import GenerationRow

_MEANINGS = {
    "best": "fitness of the fittest individual",
    "elite_average": "m-elitist average fitness",
    "median": "median fitness",
    "worst": "fitness of the least fit individual",
    "elite_offspring_fraction": "share of the elite that are children of this generation",
    "best_learning_rate": "learning rate of the fittest individual",
}
"""Columns of float64 and what viewers call them."""

_TRUTH = ("false", "true")
_SECONDS = "seconds_"
_PHASE = re.compile(r"[a-z_]+")


def write_history(path: Path, rows: Sequence[GenerationRow]) -> None:
    """Replace a history file in one step; a killed job leaves the old one or the new one."""
    new = path.with_name(path.name + files.TEMPORARY_SUFFIX)
    with hdf5.creating(new) as file:
        write_rows(file, rows)
        _write_plots(file)
    new.replace(path)
    files.fsync_folder(path.parent)


def read_history(path: Path) -> list[GenerationRow]:
    """Return the rows of a history file. Raises InputError where it is not one."""
    with hdf5.reading(path) as file:
        return read_rows(file)


def write_rows(group: h5py.Group, rows: Sequence[GenerationRow]) -> None:
    """Write the columns into a group, shape [number of rows] each."""
    scale = group.create_dataset("generation", data=_int64([row.generation for row in rows]))
    scale.make_scale("generation")
    columns = []
    for name, meaning in _MEANINGS.items():
        columns.append(group.create_dataset(name, data=_float64([getattr(r, name) for r in rows])))
        columns[-1].attrs["long_name"] = meaning
    columns.append(group.create_dataset("best_uid", data=_int64([row.best_uid for row in rows])))
    holds = [int(row.theorem_1_holds) for row in rows]
    columns.append(hdf5.write_flags(group, "theorem_1_holds", holds, _TRUTH))
    optimizers = [hdf5.OPTIMIZERS.index(row.best_optimizer or "none") for row in rows]
    columns.append(hdf5.write_flags(group, "best_optimizer", optimizers, hdf5.OPTIMIZERS))
    for phase in sorted({phase for row in rows for phase in row.seconds}):
        if not _PHASE.fullmatch(phase):
            raise ValueError(f"phase {phase!r}: expected lower-case letters and underscores")
        seconds = _float64([row.seconds.get(phase, math.nan) for row in rows])
        columns.append(group.create_dataset(_SECONDS + phase, data=seconds))
        columns[-1].attrs["long_name"] = f"wall time of {phase}"
        columns[-1].attrs["units"] = "s"
    for column in columns:
        column.dims[0].attach_scale(scale)


def read_rows(group: h5py.Group) -> list[GenerationRow]:
    """Return the rows of a group from `write_rows`."""
    generations = hdf5.read_array(group, "generation", "<i8").tolist()
    shape = (len(generations),)
    floats = {name: hdf5.read_array(group, name, "<f8", shape).tolist() for name in _MEANINGS}
    best_uids = hdf5.read_array(group, "best_uid", "<i8", shape).tolist()
    holds = hdf5.read_flags(group, "theorem_1_holds", len(generations), _TRUTH)
    optimizers = hdf5.read_flags(group, "best_optimizer", len(generations), hdf5.OPTIMIZERS)
    seconds = {
        name.removeprefix(_SECONDS): hdf5.read_array(group, name, "<f8", shape).tolist()
        for name in group
        if name.startswith(_SECONDS)
    }
    return [
        GenerationRow(
            generation=generation,
            **{name: values[row] for name, values in floats.items()},
            best_uid=best_uids[row],
            theorem_1_holds=holds[row] == "true",
            seconds={p: v[row] for p, v in seconds.items() if not math.isnan(v[row])},
            best_optimizer="" if optimizers[row] == "none" else optimizers[row],
        )
        for row, generation in enumerate(generations)
    ]


def _write_plots(file: h5py.File) -> None:
    file.attrs["NX_class"] = "NXroot"
    file.attrs["default"] = "plots"
    plots = file.create_group("plots")
    plots.attrs["NX_class"] = "NXentry"
    plots.attrs["default"] = "fitness"
    _write_plot(plots, "fitness", "Fitness", ["best", "elite_average", "median", "worst"])
    _write_plot(plots, "offspring", "Children in the elite", ["elite_offspring_fraction"])
    _write_plot(plots, "learning_rate", "Learning rate of the best", ["best_learning_rate"])
    seconds = [name for name in file if name.startswith(_SECONDS)]
    if seconds:
        _write_plot(plots, "seconds", "Wall time", seconds)


def _write_plot(plots: h5py.Group, name: str, title: str, columns: Sequence[str]) -> None:
    """Make an NXdata group of hard links, with every column over the generation."""
    plot = plots.create_group(name)
    plot.attrs["NX_class"] = "NXdata"
    plot.attrs["title"] = title
    plot.attrs["axes"] = ["generation"]
    plot.attrs["signal"] = columns[0]
    if columns[1:]:
        plot.attrs["auxiliary_signals"] = list(columns[1:])
    for column in ("generation", *columns):
        plot[column] = plots.file[column]


def _int64(values: Sequence[int]) -> np.ndarray:
    return np.asarray(values, dtype="<i8")


def _float64(values: Sequence[float]) -> np.ndarray:
    return np.asarray(values, dtype="<f8")
