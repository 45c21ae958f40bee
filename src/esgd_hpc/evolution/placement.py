"""Which group makes and owns whom: all are done at about the same time, and few vectors travel.

Pure planning, done on rank 0. Whatever is placed needs the vectors of some individuals where it
comes: a child those of its parents, a survivor its own. Each costs a vector, once for a group.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heapreplace

import numpy as np

from esgd_hpc.population import Draw, Individual

WORTH_A_MOVE = 0.1
"""Share of the time by which a placement must be longer than another to give way to it."""
_TELLING_SECONDS = 1.0
"""Time of a group's SGD step below which measured times say nothing, nor are worth anything."""
_MOST_TRIES, _TRIED_CHILDREN = 64, 512
"""How many orders of the children are tried, and up to how many children in all."""

Needs = Mapping[int, tuple[int, ...]]
"""uid of what is placed to the uids whose vectors it needs."""


def most_owned(num_individuals: int, num_groups: int) -> int:
    """Return how many individuals a group owns at most: a quarter more than its even share."""
    share = -(-num_individuals // num_groups)
    return min(share + -(-share // 4), num_individuals)


# What work lasts ----------------------------------------------------------------------------------


class Costs:
    """What SGD steps last, learned from those of one generation.

    An epoch has as many steps as there are batches, so that an individual's seconds are a constant
    and a term by 1 / batch size, which is another one for Adam. Draws of the next generation are
    known in advance. A group's pace is the ratio of its seconds to what is usual for its draws.
    """

    def __init__(
        self, trained: Iterable[Individual], trained_by: Mapping[int, int], num_groups: int
    ) -> None:
        """Take the records after an SGD step and the groups that made it, by uid."""
        self.paces = [1.0] * num_groups
        self._coefficients = np.array([1.0, 0.0, 0.0])
        self._range = (1.0, 1.0)
        known = [
            (trained_by[i.uid], i.draw, i.seconds)
            for i in trained
            if i.uid in trained_by and i.draw and not i.failure
        ]
        if sum(seconds for _, _, seconds in known) < _TELLING_SECONDS * num_groups:
            return
        groups, draws, seconds = zip(*known, strict=True)
        self._coefficients = np.linalg.lstsq(np.array(list(map(_features, draws))), seconds)[0]
        self._range = (min(seconds), max(seconds))
        measured = np.bincount(groups, seconds, num_groups)
        usual = np.bincount(groups, list(map(self.seconds, draws)), num_groups)
        paces = np.divide(measured, usual, out=np.ones(num_groups), where=usual > 0.0)
        paces /= np.median(paces)
        paces[abs(paces - 1.0) < WORTH_A_MOVE] = 1.0
        self.paces = paces.tolist()

    def seconds(self, draw: Draw) -> float:
        """Return what the SGD step of a draw lasts on a group of usual pace."""
        return float(np.clip(np.dot(_features(draw), self._coefficients), *self._range))


def _features(draw: Draw) -> tuple[float, float, float]:
    steps = 1.0 / draw.batch_size
    return 1.0, steps, steps if draw.optimizer == "adam" else 0.0


# Where it is done ---------------------------------------------------------------------------------


class _Groups:
    """What is placed on each group so far, how long that lasts, and what the group lacks for it."""

    def __init__(
        self,
        needs: Needs,
        seconds: Mapping[int, float],
        owner: Mapping[int, int],
        paces: Sequence[float],
        most: int,
    ) -> None:
        self._needs, self._seconds, self._owner, self._most = needs, seconds, owner, most
        self._paces = np.array(paces)
        self.at: dict[int, int] = {}
        self.fixed: frozenset[int] = frozenset()
        """What is not swapped."""
        self._on: list[dict[int, None]] = [{} for _ in paces]  # in the order of placing
        self.finish = np.zeros(len(paces))
        self.counts = np.zeros(len(paces), dtype=int)
        self._lacks: list[Counter[int]] = [Counter() for _ in paces]
        self._holders: dict[int, set[int]] = {}

    def end(self) -> float:
        """Return when the last group is done, rounded so that equal ends compare equal."""
        return round(float(self.finish.max()), 9)

    def vectors(self) -> int:
        """Return how many vectors come to groups, each once."""
        return sum(count > 0 for lacks in self._lacks for count in lacks.values())

    def new_vectors(self, uid: int, group: int) -> int:
        """Return how many more come to a group if something is placed there."""
        owner, lacks = self._owner, self._lacks[group]
        return sum(owner.get(u, group) != group and not lacks[u] for u in self._needs[uid])

    def near(self, uid: int) -> list[int]:
        """Return the groups that have some of what it needs."""
        found: set[int] = set()
        for needed in self._needs[uid]:
            if needed in self._owner:  # else it is at hand everywhere
                found |= {self._owner[needed], *self._holders.get(needed, ())}
        return sorted(found)

    def finish_with(self, uid: int, group: int) -> float:
        return float(self.finish[group] + self._seconds[uid] * self._paces[group])

    def has_room(self, uid: int, group: int, limit: float) -> bool:
        return self.counts[group] < self._most and self.finish_with(uid, group) <= limit + 1e-9

    def put(self, uid: int, group: int) -> None:
        self.at[uid] = group
        self._on[group][uid] = None
        self.counts[group] += 1
        self.finish[group] += self._seconds[uid] * self._paces[group]
        for needed in self._needs[uid]:
            if self._owner.get(needed, group) != group:
                self._lacks[group][needed] += 1
                self._holders.setdefault(needed, set()).add(group)

    def take(self, uid: int) -> int:
        """Undo `put` and return the group."""
        group = self.at.pop(uid)
        del self._on[group][uid]
        self.counts[group] -= 1
        self.finish[group] -= self._seconds[uid] * self._paces[group]
        for needed in self._needs[uid]:
            if self._owner.get(needed, group) != group:
                self._lacks[group][needed] -= 1
                if not self._lacks[group][needed]:
                    self._holders[needed].discard(group)
        return group

    def place_all(self, uids: Sequence[int], limit: float) -> None:
        """Place them one by one; move and swap them then, as long as that saves vectors."""
        for uid in uids:
            self._place(uid, limit)
        while sum(self._move_or_swap(uid, limit) for uid in uids):
            pass

    def _place(self, uid: int, limit: float) -> None:
        """Put it where the fewest vectors come for it by the limit, or where it is done first."""
        near = [group for group in self.near(uid) if self.has_room(uid, group, limit)]
        if near:
            self.put(uid, min(near, key=lambda g: (self.new_vectors(uid, g), self.finish[g], g)))
            return
        finish = self.finish + self._seconds[uid] * self._paces
        finish[self.counts >= self._most] = np.inf
        first = [g for g in self.near(uid) if finish[g] <= finish.min()] or [int(finish.argmin())]
        self.put(uid, min(first, key=lambda g: self.new_vectors(uid, g)))

    def _move_or_swap(self, uid: int, limit: float) -> bool:
        here = self.take(uid)
        saved = self.new_vectors(uid, here)
        for there in self.near(uid):
            new = self.new_vectors(uid, there)
            if new >= saved:
                continue
            if self.has_room(uid, there, limit):
                self.put(uid, there)
                return True
            for other in [o for o in self._on[there] if o not in self.fixed]:
                self.take(other)
                had = self.new_vectors(other, there)
                if self.has_room(uid, there, limit) and self.has_room(other, here, limit):
                    new = self.new_vectors(uid, there)
                    self.put(uid, there)
                    if new + self.new_vectors(other, here) < saved + had:
                        self.put(other, here)
                        return True
                    self.take(uid)
                self.put(other, there)
        self.put(uid, here)
        return False


def place_children(
    parents: Needs, owner: Mapping[int, int], paces: Sequence[float]
) -> dict[int, int]:
    """Return the group that makes and scores each child, by uid.

    Children last equally long; of G groups of one pace, none makes more than ceil(children / G).
    `owner` maps uid to group; a parent without owner (the anchor) is at hand everywhere.
    """
    limit, ends = 0.0, [(pace, group) for group, pace in enumerate(paces)]
    heapify(ends)
    for _ in parents:
        limit, group = ends[0]
        heapreplace(ends, (limit + paces[group], group))
    tries = max(1, min(_MOST_TRIES, _TRIED_CHILDREN // max(1, len(parents))))
    order, seconds = list(parents), dict.fromkeys(parents, 1.0)
    found = []
    for number in range(tries):
        if number:
            random.Random(number).shuffle(order)
        groups = _Groups(parents, seconds, owner, paces, len(parents))
        groups.place_all(order, limit)
        found.append(groups)
    return min(found, key=_Groups.vectors).at


def place_population(
    needs: Needs, seconds: Mapping[int, float], owner: Mapping[int, int], paces: Sequence[float]
) -> dict[int, int]:
    """Return the group that owns and trains each survivor and chosen child, by uid.

    `seconds` is what each lasts on a group of usual pace. The shortest placement puts the longest
    first. One that takes up to `WORTH_A_MOVE` longer is preferred, in this order: all survivors
    stay where they are; those that fit there by then do, the shortest or the longest first.
    """
    most = most_owned(len(needs), len(paces))
    longest_first = sorted(needs, key=lambda uid: (-seconds[uid], uid))

    def placed(limit: float, stay: frozenset[int] = frozenset()) -> _Groups:
        groups = _Groups(needs, seconds, owner, paces, most)
        groups.fixed = stay
        for uid in sorted(stay):
            groups.put(uid, owner[uid])
        groups.place_all([uid for uid in longest_first if uid not in stay], limit)
        return groups

    shortest = placed(0.0)
    survivors = [uid for uid in longest_first if uid in owner]

    def that_fit(some: Iterable[int]) -> frozenset[int]:
        room, found = [shortest.end()] * len(paces), set()
        for uid in some:
            needed = seconds[uid] * paces[owner[uid]]
            if needed <= room[owner[uid]]:
                room[owner[uid]] -= needed
                found.add(uid)
        return frozenset(found)

    for stay in (frozenset(survivors), that_fit(reversed(survivors)), that_fit(survivors)):
        found = placed(shortest.end(), stay)
        if found.end() <= (1.0 + WORTH_A_MOVE) * shortest.end() and found.counts.max() <= most:
            return found.at
    return shortest.at


def choose_makers(
    parents: Needs, home: Mapping[int, int], owner: Mapping[int, int], num_groups: int
) -> dict[int, int]:
    """Return the group that makes each chosen child: where it will live, or where that is cheaper.

    To be made elsewhere costs one vector, the child itself.
    """
    most = most_owned(len(owner), num_groups)
    groups = _Groups(parents, dict.fromkeys(parents, 0.0), owner, [1.0] * num_groups, most)
    for uid in parents:
        groups.put(uid, home[uid])
    for uid in parents:
        here = groups.take(uid)
        others = [g for g in groups.near(uid) if g != here and groups.has_room(uid, g, 0.0)]
        there = min(others, key=lambda g: groups.new_vectors(uid, g), default=here)
        cheaper = groups.new_vectors(uid, there) + 1 < groups.new_vectors(uid, here)
        groups.put(uid, there if cheaper else here)
    return groups.at
