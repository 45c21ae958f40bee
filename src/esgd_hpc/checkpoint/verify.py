"""Whether a checkpoint on disk is whole, and which one of a run to go on from. Without MPI.

Whatever a file contains, the functions here end in the text of a problem.
"""

from pathlib import Path

from esgd_hpc.checkpoint import files
from esgd_hpc.checkpoint.population_file import Contents, read_population_file
from esgd_hpc.checkpoint.reader import two_generations
from esgd_hpc.checkpoint.weights_file import open_weights_file
from esgd_hpc.errors import InputError
from esgd_hpc.layout import Layout


def verify_checkpoint(path: Path) -> list[str]:
    """Read every byte of a generation folder and return what is wrong, nothing if all is right."""
    try:
        commit = files.read_commit(path)
    except InputError as error:
        return [str(error)]
    problems = files.size_problems(path, commit.files)
    readable = {n: s for n, s in commit.files.items() if not files.size_problems(path, {n: s})}
    damaged = {n: found for n, s in readable.items() if (found := files.sum_problems(path, {n: s}))}
    problems += [problem for found in damaged.values() for problem in found]
    if files.POPULATION in damaged or files.POPULATION not in readable:
        return problems
    try:
        contents = read_population_file(path / files.POPULATION)
    except InputError as error:
        return [*problems, str(error)]
    if contents.generation != commit.generation:
        problems.append(two_generations(path, commit, contents))
    expected = _uids_by_file(contents)
    listed = commit.files.keys() - {files.POPULATION}
    problems += [
        f"{files.COMMIT} does not list {name}" for name in sorted(expected.keys() - listed)
    ]
    problems += [
        f"{files.COMMIT} lists {name}, of no group" for name in sorted(listed - expected.keys())
    ]
    for name, uids in expected.items():
        if name in readable:
            problems += _weights_problems(path / name, contents.layout, uids, name in damaged)
    return problems


def _uids_by_file(contents: Contents) -> dict[str, list[int]]:
    """Return which individuals' weights must be in which file."""
    found: dict[str, list[int]] = {files.leader_name(group): [] for group in range(contents.groups)}
    for individual in contents.individuals:
        found[files.leader_name(contents.owner[individual.uid])].append(individual.uid)
    if contents.champion is not None:
        found[files.CHAMPION] = [contents.champion.uid]
    return found


def _weights_problems(path: Path, layout: Layout, uids: list[int], damaged: bool) -> list[str]:
    """Return what is wrong inside a file of weights; reads its rows only where it is damaged."""
    try:
        with open_weights_file(path, layout.size) as weights:
            if weights.uids != uids:
                return [f"{path.name}: holds other individuals than {files.POPULATION} says"]
            rows = weights.damaged() if damaged else []
    except InputError as error:
        return [str(error)]
    return [f"{path.name}: the weights of individual {uid} are damaged" for uid in rows]


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
