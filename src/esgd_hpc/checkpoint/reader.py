"""What a checkpoint on disk holds. Without MPI.

Whatever is wrong with a file, the functions here end in an InputError that says so.
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
from esgd_hpc.population import Weights


class Checkpoint(Contents, frozen=True, kw_only=True):
    """One generation on disk: its contents, and its weights when asked for."""

    path: Path
    commit: files.Commit

    def read_weights(self, uids: Iterable[int]) -> dict[int, Weights]:
        """Return uid to flat vector, shape [P] each.

        Raises InputError for a uid that is not here and for bytes that do not match their CRC-32.
        """
        return {uid: self._assembled(self.row_pieces(uid)) for uid in uids}

    def best_weights(self) -> Weights:
        """Return the flat vector of `best()`, shape [P]."""
        return self._assembled(self.best_pieces())

    def row_pieces(self, uid: int) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the weights of one individual in pieces, and check their CRC-32 at the end."""
        if uid not in self.owner:
            raise InputError(f"{self.path}: no individual {uid}")
        return self._pieces(files.leader_name(self.owner[uid]), uid)

    def best_pieces(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the weights of `best()` in pieces, and check their CRC-32 at the end."""
        if self.champion is None:
            return self.row_pieces(self.best().uid)
        return self._pieces(files.CHAMPION, self.champion.uid)

    def _pieces(self, name: str, uid: int) -> Iterator[npt.NDArray[np.float32]]:
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

    def _assembled(self, pieces: Iterable[npt.NDArray[np.float32]]) -> Weights:
        vector = np.empty(self.layout.size, dtype=np.float32)
        filled = 0
        for piece in pieces:
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
    problems = files.size_problems(folder, sums) or files.sum_problems(folder, sums)
    if problems:
        raise InputError(f"{folder}: damaged: {problems[0]}")
    contents = read_population_file(folder / files.POPULATION)
    if contents.generation != commit.generation:
        raise InputError(two_generations(folder, commit, contents))
    return Checkpoint(path=folder, commit=commit, **_fields(contents))


def two_generations(path: Path, commit: files.Commit, contents: Contents) -> str:
    """Return what is wrong where two files of a checkpoint are of different generations."""
    return (
        f"{path}: {files.COMMIT} says generation {commit.generation},"
        f" {files.POPULATION} says {contents.generation}"
    )


def _fields(contents: Contents) -> dict[str, Any]:
    return {name: getattr(contents, name) for name in contents.__struct_fields__}


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


def weights_digest(pieces: Iterable[npt.NDArray[np.float32]]) -> str:
    """Return the SHA-256, in hex, of the weight bytes of one individual."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece.data)
    return digest.hexdigest()
