"""From whom an individual descends, and where each ancestor goes in a drawing of the family.

x      generation; the evolution step of generation k takes the last part of [k - 1, k]
lane   row; ancestors that live at the same time have different ones
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from esgd_hpc.history import Birth, History, SgdStep

STEP_WIDTH = 0.2
"""How much further right a child of the second evolution step of a generation is."""


class Relative(NamedTuple):
    """One individual of the family."""

    uid: int
    birth: Birth | None
    """None where it was not recorded: an anchor, or older than the record."""
    start: float
    """Its x at birth."""
    end: int
    """Generation of the last child that it has in the family."""
    lane: int
    steps: tuple[SgdStep, ...]
    """Its SGD steps up to `end`."""


class Family(NamedTuple):
    """An individual and those that it descends from."""

    relatives: list[Relative]
    """Youngest first, so the individual itself comes first."""
    edges: list[tuple[int, int]]
    """Places of parent and child in `relatives`."""
    num_ancestors: int
    """All that are recorded, also those that are left out."""


def family_of(uid: int, history: History, until: int, most: int) -> Family:
    """Return the family of an individual at the end of generation `until`.

    Of more than `most` individuals the youngest are in it.
    """
    births = {birth.uid: birth for birth in history.births}
    everyone = list(_youngest_first(uid, births))
    members = dict.fromkeys(everyone[:most])
    starts = _starts(everyone[:most], births)
    ends = {member: until if member == uid else 0 for member in members}
    edges = []
    for child in members:
        for parent in _parents(child, births):
            if parent in members:
                edges.append((parent, child))
                ends[parent] = max(ends[parent], births[child].born)
    lanes = _lanes(members, starts, ends, edges)
    steps: dict[int, list[SgdStep]] = {member: [] for member in members}
    for step in history.steps:
        if step.uid in members and step.generation <= ends[step.uid]:
            steps[step.uid].append(step)
    places = {member: place for place, member in enumerate(members)}
    return Family(
        relatives=[
            Relative(
                uid=member,
                birth=births.get(member),
                start=starts[member],
                end=ends[member],
                lane=lanes[member],
                steps=tuple(steps[member]),
            )
            for member in members
        ],
        edges=[(places[parent], places[child]) for parent, child in edges],
        num_ancestors=len(everyone) - 1,
    )


def _parents(uid: int, births: Mapping[int, Birth]) -> tuple[int, ...]:
    """Return the parents, which are older; a damaged file may claim anything."""
    birth = births.get(uid)
    return tuple(p for p in birth.parents if p < uid) if birth else ()


def _youngest_first(uid: int, births: Mapping[int, Birth]) -> Iterator[int]:
    """Yield the individual and its ancestors, each once; who is younger has a larger uid."""
    waiting, known = [-uid], {uid}
    while waiting:
        member = -heapq.heappop(waiting)
        yield member
        for parent in _parents(member, births):
            if parent not in known:
                known.add(parent)
                heapq.heappush(waiting, -parent)


def _starts(members: Sequence[int], births: Mapping[int, Birth]) -> dict[int, float]:
    """Return the x of each birth: children of a child of the same generation stand beside it."""
    starts: dict[int, float] = {}
    for member in reversed(members):  # parents first
        birth = births.get(member)
        if birth is None:
            starts[member] = 0.0
            continue
        beside = [
            starts[parent] + STEP_WIDTH
            for parent in _parents(member, births)
            if parent in starts and parent in births and births[parent].born == birth.born
        ]
        starts[member] = max([float(birth.born), *beside])
    return starts


def _lanes(
    members: Mapping[int, None],
    starts: Mapping[int, float],
    ends: Mapping[int, int],
    edges: Sequence[tuple[int, int]],
) -> dict[int, int]:
    """Give each member, youngest first, the free lane that is nearest to those of its children."""
    children: dict[int, list[int]] = {member: [] for member in members}
    for parent, child in edges:
        children[parent].append(child)
    taken: dict[int, list[tuple[float, float]]] = {}
    lanes: dict[int, int] = {}
    for member in members:
        near = [lanes[child] for child in children[member]]
        wish = round(sum(near) / len(near)) if near else 0
        # One may begin where another ends: a child goes on in the lane of its parent.
        start = starts[member]
        end = max(float(ends[member]), start + STEP_WIDTH)
        for distance in range(2 * len(members) + 2):
            lane = wish + (distance + 1) // 2 * (1 if distance % 2 else -1)
            if all(start >= b or end <= a for a, b in taken.get(lane, [])):
                break
        lanes[member] = lane
        taken.setdefault(lane, []).append((start, end))
    return lanes
