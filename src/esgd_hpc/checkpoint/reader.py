"""What a checkpoint on disk holds, and whether it is whole. Without MPI.

Whatever a file contains, the functions here end in an InputError or in the text of a problem.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from esgd_hpc.checkpoint import files
from esgd_hpc.checkpoint.population_file import Contents, read_population_file
from esgd_hpc.checkpoint.weights_file import open_weights_file
from esgd_hpc.errors import InputError
from esgd_hpc.population import Individual, Weights


class Checkpoint(Contents, frozen=True, kw_only=True):
    """One generation on disk: its contents, and its weights when asked for."""

    path: Path
    commit: files.Commit

    def best(self) -> Individual:
        """Return the fittest individual; of equals the one with the lowest uid."""
        return min(self.individuals, key=lambda individual: (individual.fitness, individual.uid))

    def read_weights(self, uids: Iterable[int]) -> dict[int, Weights]:
        """Return uid to flat vector, shape [P] each.

        Raises InputError for a uid that is not here and for bytes that do not match their CRC-32.
        """
        return {uid: self._read_row(uid) for uid in uids}

    def row_pieces(self, uid: int) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the weights of one individual in pieces, and check their CRC-32 at the end."""
        if uid not in self.owner:
            raise InputError(f"{self.path}: no individual {uid}")
        name = files.leader_name(self.owner[uid])
        if name not in self.commit.files:
            raise InputError(f"{self.path / files.COMMIT}: does not list {name}")
        problems = files.size_problems(self.path, {name: self.commit.files[name]})
        if problems:
            raise InputError(f"{self.path}: damaged: {problems[0]}")
        with open_weights_file(self.path / name, self.layout.size) as weights:
            if uid not in weights.uids:
                raise InputError(f"{self.path / name}: no individual {uid}")
            row = weights.uids.index(uid)
            crc = 0
            for piece in weights.pieces(row):
                crc = zlib.crc32(piece.data, crc)
                yield piece
            if crc != weights.crcs[row]:
                raise InputError(
                    f"{self.path / name}: the weights of individual {uid} are damaged (CRC-32"
                    f" {crc:08x} instead of {weights.crcs[row]:08x})"
                )

    def _read_row(self, uid: int) -> Weights:
        vector = np.empty(self.layout.size, dtype=np.float32)
        filled = 0
        for piece in self.row_pieces(uid):
            vector[filled : filled + len(piece)] = piece
            filled += len(piece)
        return vector


# Finding ------------------------------------------------------------------------------------------


def find_generation(run: Path, number: int | None = None) -> Path:
    """Return the folder of one generation of a run, by default of the newest complete one.

    `run` may be a generation's folder itself. Reads no weights. Raises InputError where there is
    none.
    """
    if not os.path.exists(run):  # unlike Path.exists, False for a name that is too long
        raise InputError(f"{run}: no such folder")
    if files.is_generation_folder(run):
        if number is not None and read_number(run) != number:
            raise InputError(f"--generation {number}: {run} is generation {read_number(run)}")
        return run
    found = files.generations(run)
    if number is not None:
        found = [generation for generation in found if generation.number == number]
    for generation in found:
        if files.is_complete(generation.path):
            return generation.path
    if found:  # opening it says what is wrong
        return found[0].path
    what = "no checkpoint" if number is None else f"no generation {number}"
    present = ", ".join(str(g.number) for g in reversed(files.generations(run)))
    raise InputError(f"{run}: {what} in this folder" + (f"; it has {present}" if present else ""))


def read_number(folder: Path) -> int:
    """Return the number of the generation in a folder."""
    return files.read_commit(folder).generation


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a generation folder, or the newest complete one of a run.

    Reads and checks everything but the leader files. Raises InputError that says what is wrong.
    """
    folder = find_generation(path)
    commit = files.read_commit(folder)
    sums = {files.POPULATION: commit.files[files.POPULATION]}
    problems = files.size_problems(folder, sums) or _sum_problems(folder, sums)
    if problems:
        raise InputError(f"{folder}: damaged: {problems[0]}")
    contents = read_population_file(folder / files.POPULATION)
    if contents.generation != commit.generation:
        raise InputError(_two_generations(folder, commit, contents))
    return Checkpoint(path=folder, commit=commit, **_fields(contents))


def _fields(contents: Contents) -> dict[str, Any]:
    return {name: getattr(contents, name) for name in contents.__struct_fields__}


# Verifying ----------------------------------------------------------------------------------------


def verify_checkpoint(path: Path) -> list[str]:
    """Read every byte of a generation folder and return what is wrong, nothing if all is right."""
    try:
        commit = files.read_commit(path)
    except InputError as error:
        return [str(error)]
    problems = files.size_problems(path, commit.files)
    readable = {n: s for n, s in commit.files.items() if not files.size_problems(path, {n: s})}
    damaged = {n: found for n, s in readable.items() if (found := _sum_problems(path, {n: s}))}
    problems += [problem for found in damaged.values() for problem in found]
    if files.POPULATION in damaged or files.POPULATION not in readable:
        return problems
    try:
        contents = read_population_file(path / files.POPULATION)
    except InputError as error:
        return [*problems, str(error)]
    if contents.generation != commit.generation:
        problems.append(_two_generations(path, commit, contents))
    expected = {files.leader_name(group) for group in range(contents.groups)}
    listed = commit.files.keys() - {files.POPULATION}
    problems += [f"{files.COMMIT} does not list {name}" for name in sorted(expected - listed)]
    problems += [f"{files.COMMIT} lists {name}, of no group" for name in sorted(listed - expected)]
    for group in range(contents.groups):
        name = files.leader_name(group)
        if name in readable:
            problems += _weights_problems(path / name, contents, group, name in damaged)
    return problems


def _sum_problems(folder: Path, sums: dict[str, files.FileSum]) -> list[str]:
    problems = []
    for name, expected in sums.items():
        try:
            found = files.file_sum(folder / name)
        except OSError as error:
            problems.append(f"{name}: cannot be read: {error.strerror}")
            continue
        if found != expected:
            problems.append(
                f"{name}: damaged: CRC-32 {found.crc32:08x} instead of {expected.crc32:08x}"
            )
    return problems


def _weights_problems(path: Path, contents: Contents, group: int, damaged: bool) -> list[str]:
    """Return what is wrong inside a leader file; reads its rows only where it is damaged."""
    expected = [i.uid for i in contents.individuals if contents.owner[i.uid] == group]
    try:
        with open_weights_file(path, contents.layout.size) as weights:
            if weights.uids != expected:
                return [f"{path.name}: holds other individuals than {files.POPULATION} says"]
            rows = weights.damaged() if damaged else []
    except InputError as error:
        return [str(error)]
    return [f"{path.name}: the weights of individual {uid} are damaged" for uid in rows]


def _two_generations(path: Path, commit: files.Commit, contents: Contents) -> str:
    return (
        f"{path}: {files.COMMIT} says generation {commit.generation},"
        f" {files.POPULATION} says {contents.generation}"
    )


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


# Comparing ----------------------------------------------------------------------------------------


def population_digest(checkpoint: Checkpoint) -> str:
    """Return the SHA-256, in hex, of uid (int64), fitness (float64) and weight bytes in uid order.

    All little-endian. Two populations with the same digest are bit-identical. Holds one piece of a
    row at a time.
    """
    digest = hashlib.sha256()
    for individual in checkpoint.individuals:
        digest.update(struct.pack("<qd", individual.uid, individual.fitness))
        for piece in checkpoint.row_pieces(individual.uid):
            digest.update(piece.data)
    return digest.hexdigest()


def weights_digest(checkpoint: Checkpoint, uid: int) -> str:
    """Return the SHA-256, in hex, of the weight bytes of one individual."""
    digest = hashlib.sha256()
    for piece in checkpoint.row_pieces(uid):
        digest.update(piece.data)
    return digest.hexdigest()
