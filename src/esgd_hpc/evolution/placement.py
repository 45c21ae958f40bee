"""Which group makes and owns whom: all are done at about the same time, and few vectors travel.

Pure planning, done on rank 0. Whatever is placed needs the vectors of some individuals where it
comes: a child those of its parents, a survivor its own. Each costs a vector, once for a group.
"""

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from heapq import heapify, heapreplace
from itertools import islice

import numpy as np
import numpy.typing as npt

from esgd_hpc.population import Draw, Individual

WORTH_A_MOVE = 0.1
"""Share of the time by which a placement must be longer than another to give way to it."""
_TELLING_SECONDS = 1.0
"""Time of a group's SGD step below which measured times say nothing, nor are worth anything."""
_MOST_TRIES, _TRIED_CHILDREN = 64, 1024
"""How many orders of the children are tried, and up to how many children in all."""
_MOST_IMPROVED = 256
"""Up to how many are moved and swapped once they are placed."""
_SEEN_GROUPS = 32
"""How many of the groups where a vector is needed are looked at for a better place."""
_TAKEN = -(2**15)
"""In place of a number of vectors: not to be chosen, however many are added to it."""

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


class _Placement:
    """What is placed on each group so far, how long that lasts, and which vectors come for it."""

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
        self.finish = np.zeros(len(paces))
        self.counts = np.zeros(len(paces), dtype=int)
        self._on: list[dict[int, None]] = [{} for _ in paces]  # in the order of placing
        self._own: list[list[int]] = [[] for _ in paces]
        for uid, group in owner.items():
            self._own[group].append(uid)
        # By group, how many need a vector there. What has no owner is at hand everywhere.
        self._users: dict[int, dict[int, int]] = {uid: {} for uid in owner}

    def end(self) -> float:
        """Return when the last group is done, rounded so that equal ends compare equal."""
        return round(float(self.finish.max()), 9)

    def vectors(self) -> int:
        """Return how many vectors come to groups, each once."""
        owner = self._owner
        return sum(group != owner[uid] for uid, users in self._users.items() for group in users)

    def new_vectors(self, uid: int, group: int) -> int:
        """Return how many more come to a group if something is placed there."""
        owner, users = self._owner, self._users
        return sum(
            owner.get(needed, group) != group and group not in users[needed]
            for needed in self._needs[uid]
        )

    def near(self, uid: int) -> list[int]:
        """Return groups that have some of what it needs, the owners always."""
        found = set()
        for needed in self._needs[uid]:
            if needed in self._owner:
                found.add(self._owner[needed])
                found.update(islice(self._users[needed], _SEEN_GROUPS))
        return sorted(found)

    def has_room(self, uid: int, group: int, limit: float) -> bool:
        """Tell whether a group may take it and have it done by the limit."""
        finish = self.finish[group] + self._seconds[uid] * self._paces[group]
        return bool(self.counts[group] < self._most and finish <= limit + 1e-9)

    def put(self, uid: int, group: int) -> list[int]:
        """Place it and return whose vectors come to the group for it."""
        self.at[uid] = group
        self._on[group][uid] = None
        self.finish[group] += self._seconds[uid] * self._paces[group]
        self.counts[group] += 1
        new = []
        for needed in self._needs[uid]:
            if needed in self._owner:
                users = self._users[needed]
                count = users.get(group, 0)
                users[group] = count + 1
                if not count and self._owner[needed] != group:
                    new.append(needed)
        return new

    def take(self, uid: int) -> int:
        """Undo `put` and return the group."""
        group = self.at.pop(uid)
        del self._on[group][uid]
        self.finish[group] -= self._seconds[uid] * self._paces[group]
        self.counts[group] -= 1
        for needed in self._needs[uid]:
            if needed in self._owner:
                users = self._users[needed]
                users[group] -= 1
                if not users[group]:
                    del users[group]
        return group

    def put_where_done_first(self, uids: Iterable[int]) -> None:
        """Place them in this order, each where it is done first, whatever travels for that."""
        for uid in uids:
            finish = self.finish + self._seconds[uid] * self._paces
            finish[self.counts >= self._most] = np.inf
            self.put(uid, int(finish.argmin()))

    def share_out(
        self, uids: Iterable[int], limit: float, shuffled: random.Random | None = None
    ) -> None:
        """Let one group after the other take those for which it has the most vectors.

        Of equals the longest first, then those that need what few others need. The groups whose own
        individuals are needed least choose first. None takes what it would not have done by the
        limit, nor, before all have had a turn, what it has no vector for. Some may be left.
        """
        order, groups = self._order(uids)
        if shuffled:
            shuffled.shuffle(groups)
            if shuffled.random() < 0.5:
                shuffled.shuffle(order)
        places: dict[int, list[int]] = {}
        for place, uid in enumerate(order):
            for needed in self._needs[uid]:
                places.setdefault(needed, []).append(place)
        users = {needed: np.array(some) for needed, some in places.items()}
        seconds = np.array([self._seconds[uid] for uid in order])
        shortest, longest = seconds.min(initial=np.inf), seconds.max(initial=0.0)
        taken = np.zeros(len(order), dtype=np.int16)  # or _TAKEN
        for fewest in (1, 0):
            for group in groups:
                has: npt.NDArray[np.int16] | None = None  # of the vectors that each needs
                while self.counts[group] < self._most:
                    room = (limit - self.finish[group]) / self._paces[group] + 1e-9
                    if room < shortest:
                        break
                    if has is None:
                        has = taken.copy()
                        for needed in self._at_hand(group):
                            if needed in users:
                                has[users[needed]] += 1
                    if room < longest:
                        has[seconds > room] = _TAKEN
                    place = int(has.argmax())
                    if has[place] < fewest:
                        break
                    has[place] = taken[place] = _TAKEN
                    for needed in self.put(order[place], group):
                        has[users[needed]] += 1

    def _order(self, uids: Iterable[int]) -> tuple[list[int], list[int]]:
        """Return in which order they are taken, and in which order groups take."""
        needs, seconds, owner = self._needs, self._seconds, self._owner
        uids = list(uids)
        uses = Counter(needed for uid in uids for needed in needs[uid] if needed in owner)
        rank = {needed: n for n, needed in enumerate(sorted(uses, key=lambda u: (uses[u], u)))}
        longest = max((seconds[uid] for uid in uids), default=0.0) or 1.0
        uids.sort(
            key=lambda uid: (
                -round(10.0 * seconds[uid] / longest),
                min((rank[needed] for needed in needs[uid] if needed in rank), default=0),
            )
        )
        needed_of = [0] * len(self._paces)
        for needed, count in uses.items():
            needed_of[owner[needed]] += count
        return uids, sorted(range(len(needed_of)), key=needed_of.__getitem__)

    def _at_hand(self, group: int) -> set[int]:
        return {needed for uid in self._on[group] for needed in self._needs[uid]}.union(
            self._own[group]
        )

    def improve(self, uids: Collection[int], limit: float) -> None:
        """Move and swap them, as long as that saves vectors, unless they are too many."""
        if len(uids) <= _MOST_IMPROVED:
            movable = set(uids)
            while sum([self._move_or_swap(uid, movable, limit) for uid in uids]):
                pass

    def _move_or_swap(self, uid: int, movable: Set[int], limit: float) -> bool:
        here = self.take(uid)
        saved = self.new_vectors(uid, here)
        for there in self.near(uid) if saved else ():
            new = self.new_vectors(uid, there)
            if new >= saved:
                continue
            if self.has_room(uid, there, limit):
                self.put(uid, there)
                return True
            for other in [o for o in self._on[there] if o in movable]:
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
    seconds, found = dict.fromkeys(parents, 1.0), []
    for number in range(max(1, min(_MOST_TRIES, _TRIED_CHILDREN // max(1, len(parents))))):
        placement = _Placement(parents, seconds, owner, paces, len(parents))
        placement.share_out(parents, limit, random.Random(number) if number else None)
        placement.improve(parents, limit)
        found.append(placement)
    return min(found, key=_Placement.vectors).at


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
    survivors = [uid for uid in longest_first if uid in owner]

    def placed(stay: Iterable[int]) -> _Placement:
        placement = _Placement(needs, seconds, owner, paces, most)
        for uid in stay:
            placement.put(uid, owner[uid])
        return placement

    shortest = placed(())
    shortest.put_where_done_first(longest_first)
    limit = shortest.end()

    def that_fit(some: Iterable[int]) -> list[int]:
        room, found = [limit] * len(paces), []
        for uid in some:
            needed = seconds[uid] * paces[owner[uid]]
            if needed <= room[owner[uid]]:
                room[owner[uid]] -= needed
                found.append(uid)
        return found

    def is_short(placement: _Placement) -> bool:
        return placement.end() <= (1.0 + WORTH_A_MOVE) * limit and placement.counts.max() <= most

    for stay in (survivors, that_fit(reversed(survivors)), that_fit(survivors)):
        if not is_short(placed(stay)):
            continue
        kept = set(stay)
        left = [uid for uid in longest_first if uid not in kept]
        num_long = sum(seconds[uid] > seconds[left[0]] / 2.0 for uid in left)
        # From few vectors to an early end: all at once, the long ones first, not the whole time.
        at_once, in_turn = (left,), (left[:num_long], left[num_long:])
        for parts, share in ((at_once, 1.0), (in_turn, 1.0), (at_once, 0.9), (at_once, 0.0)):
            found = placed(stay)
            for part in parts:
                found.share_out(part, share * limit)
            found.put_where_done_first(uid for uid in left if uid not in found.at)
            if is_short(found):
                found.improve(left, limit)
                return found.at
    return shortest.at


def choose_makers(
    parents: Needs, home: Mapping[int, int], owner: Mapping[int, int], num_groups: int
) -> dict[int, int]:
    """Return the group that makes each chosen child: where it will live, or where that is cheaper.

    To be made elsewhere costs one vector, the child itself.
    """
    most = most_owned(len(owner), num_groups)
    groups = _Placement(parents, dict.fromkeys(parents, 0.0), owner, [1.0] * num_groups, most)
    for uid in parents:
        groups.put(uid, home[uid])
    for uid in parents:
        here = groups.take(uid)
        there, vectors = here, groups.new_vectors(uid, here)
        if vectors > 1:
            others = [group for group in groups.near(uid) if groups.has_room(uid, group, 0.0)]
            there = min(others, key=lambda g: groups.new_vectors(uid, g), default=here)
        cheaper = groups.new_vectors(uid, there) + 1 < vectors
        groups.put(uid, there if cheaper else here)
    return groups.at
