"""What became of each individual, and who descends from whom.

Pure queries over a `History`. They know the individuals that were ever selected, and the anchor.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal, NoReturn

import msgspec

from esgd_hpc.errors import InputError
from esgd_hpc.history import Birth, History, Offspring, SgdStep
from esgd_hpc.population import Individual, Origin, fittest


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """What one individual went through."""

    birth: Birth
    steps: tuple[SgdStep, ...]
    survived_until: int | None
    """Last generation at whose end it was in the population; None if it never was."""
    children: tuple[Birth, ...]
    """Those of its children that were ever selected, in uid order."""
    num_children: int
    """All its children, selected or not."""

    @property
    def fitness(self) -> float:
        """The last one known."""
        return self.steps[-1].fitness if self.steps else self.birth.fitness


class Ancestry(msgspec.Struct, frozen=True, kw_only=True):
    """An individual and its ancestors, or the nearest of them."""

    root: int
    depths: dict[int, int]
    """uid to the number of births between it and the root, on the shortest way; the root's is 0.
    In the order of depth."""
    cut: frozenset[int]
    """Those with a parent that is left out."""
    num_ancestors: int
    """All there are."""
    whole_depth: int
    """The depth that leaves none out."""


class Lineage:
    """A history by uid. Raises InputError where its parts contradict each other."""

    def __init__(self, history: History) -> None:
        self.births = _births(history)
        _check(history, self.births)
        self._steps: defaultdict[int, list[SgdStep]] = defaultdict(list)
        for step in history.steps:
            self._steps[step.uid].append(step)
        self._survived_until = {
            member.uid: row.generation
            for row, members in zip(history.rows, history.survivors, strict=True)
            for member in members
        }
        self._children: defaultdict[int, list[Birth]] = defaultdict(list)
        for birth in self.births.values():
            for parent in birth.parents:
                self._children[parent].append(birth)
        everyone = (child for children in history.offspring for child in children)
        self._num_children = Counter(parent for child in everyone for parent in child.parents)

    def story(self, uid: int) -> Story:
        """Return what the individual went through. The uid must be one of `births`."""
        return Story(
            birth=self.births[uid],
            steps=tuple(self._steps.get(uid, ())),
            survived_until=self._survived_until.get(uid),
            children=tuple(self._children.get(uid, ())),
            num_children=self._num_children[uid],
        )

    def last_known(self, uid: int) -> Individual:
        """Return the record of an individual as the history has it, without metrics.

        `seconds` is that of its last SGD step, NaN before the first.
        """
        birth, steps = self.births[uid], self._steps.get(uid, [])
        last = steps[-1] if steps else None
        changed = any(step.epochs > step.back_offs for step in steps)
        at_birth: Origin = "initial" if birth.origin == "unknown" else birth.origin
        return Individual(
            uid=uid,
            fitness=last.fitness if last else birth.fitness,
            origin="sgd" if changed else at_birth,
            born=birth.born,
            parents=birth.parents,
            noise_seed=birth.noise_seed,
            sigma=birth.sigma,
            draw=last.draw if last else None,
            epochs=sum(step.epochs for step in steps),
            back_offs=sum(step.back_offs for step in steps),
            seconds=last.seconds if last else math.nan,
            failure=last.failure if last else "",
        )

    def ancestry(self, uid: int, depth: int | None = None) -> Ancestry:
        """Return the individual with its ancestors of at most `depth` births ago, or all."""
        depths = self._depths([uid])
        shown = {u: d for u, d in depths.items() if depth is None or d <= depth}
        return Ancestry(
            root=uid,
            depths=shown,
            cut=frozenset(u for u in shown if not shown.keys() >= set(self.births[u].parents)),
            num_ancestors=len(depths) - 1,
            whole_depth=max(depths.values()),
        )

    def common_ancestors(self, first: int, second: int) -> tuple[list[int], list[int]]:
        """Return all common ancestors of two individuals, and the nearest of them, by uid.

        The nearest are no ancestors of other common ones. Each counts among its own ancestors.
        """
        common = self._depths([first]).keys() & self._depths([second]).keys()
        parents = {parent for uid in common for parent in self.births[uid].parents}
        return sorted(common), sorted(common - self._depths(parents).keys())

    def _depths(self, uids: Iterable[int]) -> dict[int, int]:
        """Return the individuals and all their ancestors, each with its depth."""
        depths: dict[int, int] = {}
        level, depth = list(uids), 0
        while level:
            depths |= dict.fromkeys(level, depth)
            parents = dict.fromkeys(p for uid in level for p in self.births[uid].parents)
            level, depth = [uid for uid in parents if uid not in depths], depth + 1
        return depths


def _births(history: History) -> dict[int, Birth]:
    """Return the births by uid, with one for the anchor: the only parent that is never selected.

    Where the record does not begin with the run, other parents are not known either.
    """
    births = {birth.uid: birth for birth in history.births}
    is_whole = all(history.survivors)
    for birth in history.births:
        for parent in birth.parents:
            births.setdefault(parent, _unselected(parent, "anchor" if is_whole else "unknown"))
    return dict(sorted(births.items()))


def _check(history: History, births: Mapping[int, Birth]) -> None:
    """Refuse a history in which somebody is older than it, than a parent or than its own life."""

    def refuse(what: str) -> NoReturn:
        raise InputError(f"the history is damaged: {what}")

    if [row.generation for row in history.rows] != list(range(len(history.rows))):
        refuse("its generations are not 0, 1, 2 ...")
    for birth in history.births:
        if not 0 <= birth.born < len(history.rows):
            refuse(f"individual {birth.uid} was born in generation {birth.born}")
        for parent in birth.parents:
            if parent >= birth.uid or births[parent].born > birth.born:
                refuse(f"individual {birth.uid} has the parent {parent}, which is not older")
    seen = [(step.uid, step.generation - 1) for step in history.steps]
    for row, members in zip(history.rows, history.survivors, strict=True):
        seen += [(member.uid, row.generation) for member in members]
    for uid, generation in seen:
        if uid not in births or births[uid].born > generation:
            refuse(f"individual {uid} is there in generation {generation}, before its birth")


def _unselected(uid: int, origin: Literal["anchor", "unknown"]) -> Birth:
    return Birth(
        uid=uid,
        born=0,
        origin=origin,
        parents=(),
        noise_seed="0",
        sigma=0.0,
        fitness=math.nan,
    )


def extent(ancestry: Ancestry) -> str:
    """Return in words whom an ancestry has."""
    shown, everyone = len(ancestry.depths) - 1, ancestry.num_ancestors
    if everyone == 0:
        return f"individual {ancestry.root}, which has no ancestors"
    left_out = f"{shown} of " if ancestry.cut else ""
    ancestors = "ancestor" if everyone == 1 else "ancestors"
    return f"individual {ancestry.root} and {left_out}its {everyone} {ancestors}"


# Generations --------------------------------------------------------------------------------------


def as_of(history: History, generation: int) -> History:
    """Return what the history was at the end of a generation."""
    rows = [row for row in history.rows if row.generation <= generation]
    return History(
        rows=rows,
        survivors=history.survivors[: len(rows)],
        offspring=history.offspring[: len(rows)],
        births=[birth for birth in history.births if birth.born <= generation],
        steps=[step for step in history.steps if step.generation <= generation],
        changes=[change for change in history.changes if change.generation < generation],
    )


def last_population(history: History, lineage: Lineage) -> list[Individual]:
    """Return the records of the last generation, in uid order, see `Lineage.last_known`."""
    return [
        msgspec.structs.replace(
            lineage.last_known(member.uid), fitness=member.fitness, origin=member.origin
        )
        for member in history.survivors[-1]
    ]


def lost_champion(history: History, lineage: Lineage) -> Individual | None:
    """Return the fittest state ever seen if the last generation no longer has it.

    None as well where no generation ended with that state.
    """
    best_ever = history.rows[-1].best_ever
    if best_ever >= history.rows[-1].best:
        return None
    for row in history.rows:
        if row.best == best_ever:
            then = as_of(history, row.generation)
            return fittest(last_population(then, Lineage(then)))
    return None


# Who is asked for ---------------------------------------------------------------------------------


def nearest_uids(lineage: Lineage, uid: int, count: int = 5) -> list[int]:
    """Return the uids that are nearest to one that the lineage does not have, in rising order."""
    return sorted(sorted(lineage.births, key=lambda known: (abs(known - uid), known))[:count])


def unselected_child(history: History, uid: int) -> tuple[int, Offspring] | None:
    """Return a child that was never selected, with its generation; None if there is none."""
    for row, children in zip(history.rows, history.offspring, strict=True):
        for child in children:
            if child.uid == uid:
                return row.generation, child
    return None
