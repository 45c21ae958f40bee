"""What verification has to know of one HDF5 file, told by opening it in this process.

Whatever HDF5 reports becomes an InputError. What it does not survive needs `isolated`.
"""

from pathlib import Path

import msgspec

from esgd_hpc.checkpoint import files, hdf5
from esgd_hpc.checkpoint.history_file import read_history_file
from esgd_hpc.checkpoint.population_file import read_population_file
from esgd_hpc.checkpoint.weights_file import open_weights_file


class PopulationFacts(msgspec.Struct, frozen=True):
    """What a population.h5 says, once it has passed all checks."""

    generation: int
    groups: int
    size: int
    """Length P of a row of weights."""
    uids: dict[str, list[int]]
    """File of weights to the individuals in it, in the order of its rows; no empty ones."""


class WeightsFacts(msgspec.Struct, frozen=True):
    """What a file of weights says."""

    size: int
    """Length P of a row."""
    uids: list[int]
    damaged: list[int]
    """Numbers of the rows whose bytes do not match their CRC-32; none if they were not read."""


class HistoryFacts(msgspec.Struct, frozen=True):
    """What a history.h5 says, once it has passed all checks."""

    generations: int


def population_facts(path: Path) -> PopulationFacts:
    """Read and check a population.h5. Raises InputError that says what is wrong."""
    contents = read_population_file(path)
    uids: dict[str, list[int]] = {}
    for individual in contents.individuals:
        name = files.leader_name(contents.owner[individual.uid])
        uids.setdefault(name, []).append(individual.uid)
    if contents.champion is not None:
        uids[files.CHAMPION] = [contents.champion.uid]
    return PopulationFacts(contents.generation, contents.groups, contents.layout.size, uids)


def weights_facts(path: Path, *, read_rows: bool) -> WeightsFacts:
    """Read a file of weights, where `read_rows` with the weights themselves, a piece at a time.

    Raises InputError that says what is wrong.
    """
    with hdf5.reading(path) as file:
        shape = hdf5.read_dataset(file, "weights").shape
    size = shape[-1] if shape else 0
    with open_weights_file(path, size) as weights:
        rows = enumerate(weights.crcs) if read_rows else ()
        damaged = [row for row, crc in rows if weights.row_crc(row) != crc]
        return WeightsFacts(size, weights.uids, damaged)


def history_facts(path: Path) -> HistoryFacts:
    """Read and check a history.h5. Raises InputError that says what is wrong."""
    return HistoryFacts(len(read_history_file(path).rows))
