"""How population.h5 holds all that a checkpoint knows besides the weights.

    uid, fitness, born, group, ...   [mu]      one column per field, for viewers
    record                           [mu]      each record as JSON, lossless but for the fitness
    weights                          [mu, P]   virtual, in uid order, over the leader files
    place                            [P]       names a dimension; has no values and takes no room
    champion                                   record of the fittest state ever seen, JSON, where
                                               the population lost it; weights in champion.h5
    layout, recipe                             JSON
    underway                                   what is done of the next generation, where that was
                                               interrupted: msgpack
    history/                                   as in history.h5
    plots/                                     what silx and h5web draw, see `nexus`
    provenance                                 attributes: versions, hosts, command line

xarray opens the root. The reader takes records from `uid`, `fitness`, `group` and `record`, and
never looks through the virtual dataset.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np

from esgd_hpc.checkpoint import files, hdf5, nexus
from esgd_hpc.checkpoint.history_file import most_parents, read_history, write_history
from esgd_hpc.checkpoint.tables import describe_parents, padded
from esgd_hpc.errors import InputError
from esgd_hpc.history import OPTIMIZERS, History, optimizer_of
from esgd_hpc.layout import Entry, Layout
from esgd_hpc.population import ORIGINS, Individual, fittest
from esgd_hpc.underway import Underway

_BUFFER_TYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("complex64", "complex128"),
)
"""Types of the buffers that a layout calls integer: all that are not float32."""

_NO_VALUES = "This is a netCDF dimension but not a netCDF variable.{:10d}"
"""Name, with its length, of a dimension scale that to netCDF and xarray is no variable."""

_MAX_COUNT = 2**63
_MAX_DIMENSIONS = 64
_MAX_DEPTH = 100
_NOISE_SEED = re.compile(r"[0-9]{1,39}")


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint holds besides the weights."""

    generation: int
    individuals: list[Individual]
    """In uid order."""
    owner: dict[int, int]
    """uid to the number of the group whose leader file has its weights."""
    next_uid: int
    layout: Layout
    recipe: dict[str, Any]
    """As from `config.recipe_data`."""
    history: History
    champion: Individual | None = None
    """The fittest state ever seen, where it is no longer in the population."""
    underway: Underway | None = None
    """What is done of the next generation, where that was interrupted; the records and weights are
    then the newest."""
    saving_seconds: float = 0.0
    """What the slowest checkpoint before this one took."""
    ranks: int
    """World size of the run that wrote it."""
    ranks_per_group: int
    groups: int
    provenance: dict[str, str]
    """Versions, hosts, command line: for people."""

    def best(self) -> Individual:
        """Return the fittest ever seen: the champion, or the fittest individual."""
        return self.champion or fittest(self.individuals)


# Writing ------------------------------------------------------------------------------------------


def write_population_file(path: Path, contents: Contents) -> None:
    """Write everything; leader files need not exist yet. Raises RunError where the disk refuses."""
    with hdf5.creating(path) as file:
        file.attrs["format"] = files.FORMAT_VERSION
        for name in ("generation", "next_uid", "ranks", "ranks_per_group", "groups"):
            file.attrs[name] = np.int64(getattr(contents, name))
        file.attrs["saving_seconds"] = np.float64(contents.saving_seconds)
        _write_columns(file, contents)
        _write_view(file, contents)
        hdf5.write_text(file, "layout", msgspec.json.encode(contents.layout).decode())
        hdf5.write_text(file, "recipe", json.dumps(contents.recipe))
        if contents.champion is not None:
            text = json.dumps(msgspec.to_builtins(contents.champion))
            hdf5.write_text(file, "champion", text)
        if contents.underway is not None:
            packed = np.frombuffer(msgspec.msgpack.encode(contents.underway), dtype=np.uint8)
            file.create_dataset("underway", data=packed)
        run = nexus.run_name(contents.recipe)
        write_history(file.create_group("history"), contents.history, run)
        what = f"Population of generation {contents.generation}"
        nexus.describe(file, what, contents.recipe, contents.provenance)
        _write_plots(file, contents.generation, run)


def _write_plots(file: h5py.File, generation: int, run: str) -> None:
    plots = nexus.create_plots(file, default="fitness")
    title = f"Fitness in generation {generation}\n({run})"
    nexus.add_plot(plots, "fitness", title, ["fitness"], ["uid"])
    title = f"Individuals of generation {generation}: {run}"
    colours = ["optimizer", "born", "epochs", "back_offs", "learning_rate"]
    nexus.add_plot(plots, "individuals", title, colours, ["uid", "fitness"])


def _write_columns(file: h5py.File, contents: Contents) -> None:
    individuals = contents.individuals
    uid = file.create_dataset("uid", data=np.asarray([i.uid for i in individuals], "<i8"))
    uid.make_scale("uid")

    def column(name: str, dtype: str, values: Sequence[Any], long_name: str = "") -> None:
        dataset = file.create_dataset(name, data=np.asarray(values, dtype))
        if long_name:
            dataset.attrs["long_name"] = long_name

    column("fitness", "<f8", [i.fitness for i in individuals])
    column("born", "<i8", [i.born for i in individuals], "generation of birth")
    column("group", "<i8", [contents.owner[i.uid] for i in individuals])
    parents = padded([i.parents for i in individuals], most_parents(contents.history))
    column("parents", "<i8", parents)
    hdf5.write_texts(file, "noise_seed", [i.noise_seed for i in individuals])
    column("sigma", "<f8", [i.sigma for i in individuals])
    column("epochs", "<i8", [i.epochs for i in individuals])
    column("back_offs", "<i8", [i.back_offs for i in individuals], "epochs backed off")
    column("seconds", "<f8", [i.seconds for i in individuals])
    file["seconds"].attrs["units"] = "s"
    rates = [i.draw.learning_rate if i.draw else math.nan for i in individuals]
    column("learning_rate", "<f8", rates, "learning rate of the last SGD step")
    optimizers = [OPTIMIZERS.index(optimizer_of(i)) for i in individuals]
    hdf5.write_flags(file, "optimizer", optimizers, OPTIMIZERS)
    file["optimizer"].attrs["long_name"] = "optimizer: " + ", ".join(
        f"{flag} {name}" for flag, name in enumerate(OPTIMIZERS)
    )
    hdf5.write_flags(file, "origin", [ORIGINS.index(i.origin) for i in individuals], ORIGINS)
    hdf5.write_texts(file, "record", [_record_text(i) for i in individuals])
    for name in file:
        if name != "uid":
            file[name].dims[0].attach_scale(uid)
    describe_parents(file["parents"], 1)


def _record_text(individual: Individual) -> str:
    """Return all but the fitness; json, unlike msgspec, keeps metrics that are not finite."""
    fields = msgspec.to_builtins(individual)
    del fields["fitness"]
    return json.dumps(fields)


def _write_view(file: h5py.File, contents: Contents) -> None:
    """Make the virtual dataset that shows viewers all weights in uid order."""
    size = contents.layout.size
    counts = dict.fromkeys(range(contents.groups), 0)
    places = []
    for individual in contents.individuals:
        group = contents.owner[individual.uid]
        places.append((group, counts[group]))
        counts[group] += 1
    view = h5py.VirtualLayout((len(places), size), dtype="<f4")
    for row, (group, source_row) in enumerate(places):
        if size:
            name, shape = files.leader_name(group), (counts[group], size)
            view[row] = h5py.VirtualSource(name, "weights", shape, dtype="<f4")[source_row]
    weights = file.create_virtual_dataset("weights", view, fillvalue=np.nan)
    weights.dims[0].attach_scale(file["uid"])
    place = file.create_dataset("place", shape=(size,), dtype="<f4")
    place.make_scale(_NO_VALUES.format(size))
    weights.dims[1].attach_scale(place)


# Reading ------------------------------------------------------------------------------------------


def read_population_file(path: Path) -> Contents:
    """Return the checked contents. Raises InputError that names the file and what is wrong."""
    with hdf5.reading(path) as file:
        uids = hdf5.read_array(file, "uid", "<i8").tolist()
        shape = (len(uids),)
        fitness = hdf5.read_array(file, "fitness", "<f8", shape).tolist()
        owners = hdf5.read_array(file, "group", "<i8", shape).tolist()
        records = hdf5.read_texts(file, "record", len(uids))
        champion = hdf5.read_text(file, "champion") if "champion" in file else None
        contents = Contents(
            generation=hdf5.read_number(file, "generation"),
            individuals=list(map(_individual, records, fitness)),
            owner=dict(zip(uids, owners, strict=True)),
            next_uid=hdf5.read_number(file, "next_uid"),
            layout=msgspec.json.decode(hdf5.read_text(file, "layout"), type=Layout),
            recipe=msgspec.convert(json.loads(hdf5.read_text(file, "recipe")), dict[str, Any]),
            history=read_history(
                hdf5.read_group(file, "history"), hdf5.read_number(file, "format")
            ),
            champion=msgspec.convert(json.loads(champion), Individual) if champion else None,
            saving_seconds=hdf5.read_seconds(file, "saving_seconds"),
            underway=_read_underway(file) if "underway" in file else None,
            ranks=hdf5.read_number(file, "ranks"),
            ranks_per_group=hdf5.read_number(file, "ranks_per_group"),
            groups=hdf5.read_number(file, "groups"),
            provenance=hdf5.read_text_attributes(hdf5.read_group(file, "provenance")),
        )
    _check(path, contents, uids)
    return contents


def _read_underway(file: h5py.File) -> Underway:
    packed = hdf5.read_array(file, "underway", "u1").tobytes()
    return msgspec.msgpack.decode(packed, type=Underway)


def _individual(text: str, fitness: float) -> Individual:
    fields = json.loads(text)
    if not isinstance(fields, Mapping):
        raise ValueError("a record is not a JSON object")
    return msgspec.convert({**fields, "fitness": fitness}, Individual)


def _check(path: Path, contents: Contents, uids: list[int]) -> None:
    """Check what types alone do not say, so that nothing later grows with a number from a file."""
    if not uids or sorted(set(uids)) != uids or uids != [i.uid for i in contents.individuals]:
        raise InputError(f"{path}: uid: expected at least one, rising, the same as in the records")
    if uids[0] < 0 or not uids[-1] < contents.next_uid < _MAX_COUNT:
        raise InputError(f"{path}: uid: {uids[0]} to {uids[-1]}, next_uid {contents.next_uid}")
    if any(not 0 <= group < contents.groups for group in contents.owner.values()):
        raise InputError(f"{path}: group: not all from 0 to {contents.groups - 1}")
    if contents.ranks != contents.groups * contents.ranks_per_group:
        raise InputError(
            f"{path}: ranks: {contents.ranks} are not {contents.groups} groups of"
            f" {contents.ranks_per_group}"
        )
    champion = [contents.champion] if contents.champion else []
    for individual in (*contents.individuals, *champion):
        _check_individual(path, individual, contents.next_uid)
    made = contents.underway
    if made and (
        made.generation != contents.generation + 1
        or [i.uid for i in made.before] != sorted({i.uid for i in made.before})
        or not {i.uid for i in made.trained} <= {i.uid for i in made.before}
    ):
        raise InputError(f"{path}: underway: generation {made.generation} does not fit")
    for birth in contents.history.births:
        if any(not 0 <= parent < birth.uid for parent in birth.parents):
            raise InputError(f"{path}: history: a parent of individual {birth.uid} is not older")
    if _is_deeper(contents.recipe, _MAX_DEPTH):
        raise InputError(f"{path}: recipe: nested more than {_MAX_DEPTH} deep")
    _check_layout(path, contents.layout)


def _check_individual(path: Path, individual: Individual, next_uid: int) -> None:
    counts = (individual.born, individual.epochs, individual.back_offs)
    if (
        any(not 0 <= uid < next_uid for uid in (individual.uid, *individual.parents))
        or any(not 0 <= count < _MAX_COUNT for count in counts)
        or not _NOISE_SEED.fullmatch(individual.noise_seed)
        or math.isnan(individual.fitness)
    ):
        raise InputError(f"{path}: record: individual {str(individual.uid)[:20]}: out of bounds")


def _is_deeper(value: Any, levels: int) -> bool:
    """Tell whether JSON data is nested deeper than so many levels."""
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in inner)


def _check_layout(path: Path, layout: Layout) -> None:
    offset = 0
    names: set[str] = set()
    for entry in layout.entries:
        if entry.offset != offset or entry.size != _places(entry) or entry.name in names:
            raise InputError(f"{path}: layout: entry {entry.name[:60]!r} does not fit")
        offset += entry.size
        names.add(entry.name)
    if offset >= _MAX_COUNT:
        raise InputError(f"{path}: layout: too many values")
    aliases = layout.aliases
    if not names.issuperset(aliases.values()) or names & aliases.keys():
        raise InputError(f"{path}: layout: an alias that does not fit")


def _places(entry: Entry) -> int:
    """Return how many float32 places the shape and type of an entry need, -1 for a wrong one."""
    expected = _BUFFER_TYPES if entry.kind == "integer" else ("float32",)
    if entry.dtype not in expected or len(entry.shape) > _MAX_DIMENSIONS:
        return -1
    if any(not 0 <= length < _MAX_COUNT for length in entry.shape):
        return -1
    return -(-math.prod(entry.shape) * np.dtype(entry.dtype).itemsize // 4)
