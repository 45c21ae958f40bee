"""Whether a checkpoint on disk is whole, and which one of a run to go on from. Without MPI.

There are two ways to look. A run that starts takes `newest_valid`: MPI may forbid child processes,
so all happens in this one, and an HDF5 file is opened only once all its bytes are known to be those
that were written. `esgd verify` takes `examine_checkpoint`, which opens damaged files too, in child
processes (see `isolated`), and finds out whose weights are lost.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from esgd_hpc.checkpoint import files
from esgd_hpc.checkpoint.facts import (
    PopulationFacts,
    WeightsFacts,
    population_facts,
    weights_facts,
)
from esgd_hpc.checkpoint.isolated import Reader
from esgd_hpc.errors import InputError

_MISSING_NAMED = 10
"""Files missing in COMMIT.json that are named; where there are more, their number is told."""


class Verdict(NamedTuple):
    """What is wrong with a checkpoint; both are empty where nothing is."""

    problems: list[str]
    lost: list[int]
    """uids of the individuals whose weights cannot be had, as far as they are known; rising."""


class _Look(Protocol):
    """How a file is opened."""

    opens_damaged: bool

    def population(self, path: Path) -> PopulationFacts: ...

    def weights(self, path: Path) -> WeightsFacts: ...


class _Here:
    """Opens in this process what COMMIT.json vouches for, without the weights themselves."""

    opens_damaged = False

    def population(self, path: Path) -> PopulationFacts:
        return population_facts(path)

    def weights(self, path: Path) -> WeightsFacts:
        return weights_facts(path, read_rows=False)


def verify_checkpoint(path: Path) -> list[str]:
    """Read every byte of a generation folder and return what is wrong, nothing if all is right."""
    return _look_at(path, _Here()).problems


def examine_checkpoint(path: Path, reader: Reader) -> Verdict:
    """Read every byte of a generation folder, and every row of weights, also in damaged files.

    Opens no HDF5 file in this process. Raises RunError where no child process can be started.
    """
    return _look_at(path, reader)


def newest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest generation that verifies, and what was skipped and why.

    `folder` is a run's or one generation's. Every byte of what is looked at is read. Leftovers of
    killed jobs are not looked at.
    """
    if files.is_generation_folder(folder):
        candidates = [folder]
    else:
        candidates = [generation.path for generation in files.generations(folder)]
    notes: list[str] = []
    for path in candidates:
        problems = verify_checkpoint(path)
        if not problems:
            return path, notes
        more = f" (and {len(problems) - 1} more)" if problems[1:] else ""
        notes.append(f"{path.name} is skipped: {problems[0]}{more}")
    return None, notes


# One generation -----------------------------------------------------------------------------------


def _look_at(path: Path, look: _Look) -> Verdict:
    try:
        commit = files.read_commit(path)
    except InputError as error:
        return Verdict([str(error)], [])
    population, problems = _look_at_population(path, commit, look)
    lost: set[int] = set()
    listed = sorted(commit.files.keys() - {files.POPULATION})
    for name in listed:
        found = _look_at_weights(path, name, commit.files[name], population, look)
        problems += found.problems
        lost.update(found.lost)
    if population is not None:
        problems += _disagreements(commit, listed, population)
        for name in population.uids.keys() - set(listed):
            lost.update(population.uids[name])
    return Verdict(problems, sorted(lost))


def _look_at_population(
    path: Path, commit: files.Commit, look: _Look
) -> tuple[PopulationFacts | None, list[str]]:
    """Return what population.h5 says, None where it is damaged, and what is wrong with it."""
    entry = {files.POPULATION: commit.files[files.POPULATION]}
    problems = files.size_problems(path, entry) or files.sum_problems(path, entry)
    if problems:
        return None, problems
    try:
        return look.population(path / files.POPULATION), []
    except InputError as error:
        return None, [str(error)]


def _look_at_weights(
    path: Path,
    name: str,
    expected: files.FileSum,
    population: PopulationFacts | None,
    look: _Look,
) -> Verdict:
    """Return what is wrong with one file of weights, and whose weights that costs."""
    problems = files.size_problems(path, {name: expected})
    can_be_opened = not problems
    if can_be_opened:
        problems = files.sum_problems(path, {name: expected})
        can_be_opened = look.opens_damaged or not problems
    facts: WeightsFacts | None = None
    if can_be_opened:
        try:
            facts = look.weights(path / name)
        except InputError as error:
            problems.append(str(error))
    rows = _rows_verdict(name, facts, population)
    return Verdict(problems + rows.problems, rows.lost)


def _rows_verdict(
    name: str, facts: WeightsFacts | None, population: PopulationFacts | None
) -> Verdict:
    """Return whose weights a file lacks, by population.h5 where that can be read."""
    if facts is None:
        uids = population.uids.get(name, []) if population else []
        return Verdict(
            [f"{name}: the weights of {_individuals(uids)} are in it"] if uids else [], uids
        )
    uids = population.uids.get(name, []) if population else facts.uids
    if population is not None and facts.size != population.size:
        told = f"{name}: rows of {facts.size} values, {files.POPULATION} says {population.size}"
        return Verdict([told], uids)
    problems = []
    if facts.uids != uids:
        problems.append(f"{name}: holds other individuals than {files.POPULATION} says")
        if len(facts.uids) != len(uids):
            return Verdict(problems, uids)
    damaged = set(facts.damaged)
    lost = [u for row, u in enumerate(uids) if row in damaged or facts.uids[row] != u]
    problems += [f"{name}: the weights of individual {uid} are damaged" for uid in lost]
    return Verdict(problems, lost)


def _disagreements(
    commit: files.Commit, listed: Sequence[str], population: PopulationFacts
) -> list[str]:
    """Return where COMMIT.json and population.h5 say different things."""
    problems = []
    if population.generation != commit.generation:
        problems.append(
            f"{files.COMMIT} says generation {commit.generation},"
            f" {files.POPULATION} says {population.generation}"
        )
    if population.groups > len(listed) + _MISSING_NAMED:  # any number; none to count up to
        return [
            *problems,
            f"{files.COMMIT} lists {len(listed)} files of weights,"
            f" {files.POPULATION} says {population.groups} groups",
        ]
    needed = {
        files.leader_name(group) for group in range(population.groups)
    } | population.uids.keys()
    problems += [f"{files.COMMIT} does not list {name}" for name in sorted(needed - set(listed))]
    problems += [
        f"{files.COMMIT} lists {name}, of no group" for name in sorted(set(listed) - needed)
    ]
    return problems


def _individuals(uids: Sequence[int]) -> str:
    return f"individual{'s' if len(uids) > 1 else ''} {', '.join(map(str, uids))}"
