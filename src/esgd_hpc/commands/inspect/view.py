"""Which generation of a run is looked at, and which individual is meant."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from esgd_hpc.checkpoint import files
from esgd_hpc.checkpoint.reader import Checkpoint, find_generation, open_checkpoint
from esgd_hpc.distance import Piece
from esgd_hpc.errors import InputError
from esgd_hpc.history import GenerationRow, History
from esgd_hpc.lineage import (
    Lineage,
    as_of,
    last_population,
    lost_champion,
    nearest_uids,
    unselected_child,
)
from esgd_hpc.population import Individual, fittest
from esgd_hpc.underway import Underway

NOT_KEPT = "no longer kept: only the newest generations are"


@dataclass(frozen=True, kw_only=True)
class View:
    """One generation of a run, with its weights or as the history remembers it."""

    checkpoint: Checkpoint
    """That generation where it is still on disk, else the newest one."""
    generation: int
    history: History
    """Up to the generation."""

    @property
    def kept(self) -> bool:
        """Tell whether the weights of the generation are on disk."""
        return self.checkpoint.generation == self.generation

    @cached_property
    def lineage(self) -> Lineage:
        """Return the lineage. Raises InputError for a run that has none."""
        if not self.history.survivors:
            raise InputError(
                f"{self.checkpoint.path}: no lineage in this checkpoint (format"
                f" {self.checkpoint.commit.format}; lineage is kept since format 2);"
                " `esgd inspect` shows its own generation"
            )
        return Lineage(self.history)

    @property
    def row(self) -> GenerationRow:
        """Return the numbers of the generation."""
        if not self.history.rows or self.history.rows[-1].generation != self.generation:
            raise InputError(
                f"{self.checkpoint.path}: the history is damaged: it does not end with generation"
                f" {self.generation}"
            )
        return self.history.rows[-1]

    @cached_property
    def individuals(self) -> list[Individual]:
        """Return the population in uid order."""
        if self.kept:
            return self.checkpoint.individuals
        found = last_population(self.history, self.lineage)
        if not found:
            raise InputError(
                f"{self.checkpoint.path}: nobody is recorded in generation {self.generation}: the"
                " run began in format 1, which has no lineage"
            )
        return found

    @cached_property
    def champion(self) -> Individual | None:
        """Return the fittest state ever seen, where the population lost it."""
        if self.kept:
            return self.checkpoint.champion
        return lost_champion(self.history, self.lineage)

    @cached_property
    def underway(self) -> Underway | None:
        """Return what was done of the next generation when the run was stopped, if it was."""
        for path in files.interrupted(self.checkpoint.path.parent):
            with suppress(InputError):
                found = open_checkpoint(path)
                if found.generation == self.generation:
                    return found.underway
        return None

    def best(self) -> Individual:
        """Return the fittest ever seen."""
        return self.champion or fittest(self.individuals)

    def weights_of(self, individual: Individual) -> Iterator[Piece] | None:
        """Return the weights in pieces; None where they are no longer kept."""
        if not self.kept:
            return None
        if individual is self.champion:
            return self.checkpoint.best_pieces()
        if individual.uid in self.checkpoint.owner:
            return self.checkpoint.row_pieces(individual.uid)
        return None


def open_view(run: Path, number: int | None) -> View:
    """Return one generation of a run, by default the newest complete one.

    Raises InputError where there is none, and the history does not remember it either.
    """
    try:
        folder = find_generation(run, number)
    except InputError:
        if number is None or not os.path.isdir(run):
            raise
        newest = open_checkpoint(find_generation(run))
        if number not in [row.generation for row in newest.history.rows]:
            raise
        return View(checkpoint=newest, generation=number, history=as_of(newest.history, number))
    checkpoint = open_checkpoint(folder)
    return View(checkpoint=checkpoint, generation=checkpoint.generation, history=checkpoint.history)


def asked_uid(view: View, option: str, asked: str) -> int:
    """Return the uid of `best`, or the one that is asked for.

    Raises InputError that begins with the option, where nobody of that uid was ever selected.
    """
    if asked == "best":
        return view.best().uid
    lineage = view.lineage
    if not (asked.isdecimal() and len(asked) < 19):
        raise InputError(f"{option} {asked}: expected `best` or a uid, such as {view.best().uid}")
    uid = int(asked)
    if uid in lineage.births:
        return uid
    near = ", ".join(map(str, nearest_uids(lineage, uid)))
    found = unselected_child(view.history, uid)
    if found is not None:
        generation, child = found
        raise InputError(
            f"{option} {uid}: a child of generation {generation} that was never selected (fitness"
            f" {child.fitness:.6g}), so nothing more is known of it; the nearest that were: {near}"
        )
    raise InputError(
        f"{option} {uid}: no such individual up to generation {view.generation}; the nearest are"
        f" {near}, and `best` works as well"
    )
