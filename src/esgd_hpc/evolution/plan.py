"""Who makes which child and who lends which parent: pure planning, done on rank 0 and broadcast.

A plan is a list of rounds. In a round each group makes some children, one after another; before
them, the parents that the group lacks come from the leaders that own them. A borrowed parent stays
while the next round needs it; the children of a group are ordered so that this is likely.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from esgd_hpc import rng
from esgd_hpc.config import Recipe
from esgd_hpc.errors import RunError
from esgd_hpc.evolution import operators
from esgd_hpc.population import Individual, Transfer


class Child(msgspec.Struct, frozen=True, kw_only=True):
    """All that is needed to make a child, at any time and on any leader."""

    uid: int
    parents: tuple[int, ...]
    """uids in the order of the draw."""
    noise_seed: str = "0"
    """128-bit key, decimal."""
    sigma: float = 0.0
    is_copy: bool = False
    """An anchor that was chosen: its one parent, bit for bit."""


class Making(msgspec.Struct, frozen=True, kw_only=True):
    """What one group does in one round."""

    children: tuple[Child, ...]
    borrow: tuple[int, ...] = ()
    """uids that come to the group before the children are made."""
    give_back: tuple[int, ...] = ()
    """borrowed uids that the group forgets after them."""


Round = dict[int, Making]
"""Group number to what it does; groups without children in this round are absent."""


def draw_children(
    recipe: Recipe,
    parents: Sequence[Individual],
    first_uid: int,
    generation: int,
    step: int,
) -> list[Child]:
    """Draw the lambda children of one evolution step: parents, mutation strength, noise seed.

    Every draw comes from a stream keyed by the child's uid. Raises RunError where no individual
    can be a parent or the selection does not fit the fitness.
    """
    settings = recipe.evolution
    fitness = np.array([parent.fitness for parent in parents])
    try:
        scores = operators.selection_scores(fitness, settings.selection, settings.smoothing)
    except ValueError as error:
        raise RunError(f"generation {generation}: {error}") from None
    if not scores.any():
        raise RunError(
            f"generation {generation}: no individual has a finite fitness, so none can be a parent"
        )
    rhos = settings.parents_per_child
    rhos = (rhos,) if isinstance(rhos, int) else rhos
    sigma = settings.mutation_strength
    children = []
    for uid in range(first_uid, first_uid + recipe.population.offspring):
        stream = rng.stream(recipe.seed, generation, step, uid, rng.Purpose.PARENTS)
        rho = rhos[int(stream.random() * len(rhos))]
        sigma_0 = float(stream.uniform(sigma.low, sigma.high))
        places = operators.roulette(scores, rho, stream)
        children.append(
            Child(
                uid=uid,
                parents=tuple(parents[place].uid for place in places),
                noise_seed=str(rng.key(recipe.seed, generation, step, uid, rng.Purpose.MUTATION)),
                sigma=sigma_0 / generation,
            )
        )
    return children


def assign_makers(
    children: Sequence[Child], owner: Mapping[int, int], num_groups: int
) -> dict[int, int]:
    """Return each child's group, by uid: near its parents, at most ceil(lambda / groups) each.

    `owner` maps uid to group; a parent without owner (the anchor) is at hand everywhere.
    """
    return _place_near_parents(children, owner, [0] * num_groups, -(-len(children) // num_groups))


def plan_rounds(
    children: Sequence[Child],
    maker: Mapping[int, int],
    owner: Mapping[int, int],
    num_groups: int,
) -> list[Round]:
    """Order the children of each group and say what it borrows and gives back around them.

    A group holds at most as many borrowed parents as its share of the population, or as one child
    needs where that is more. Groups meet once a round, so a round has all children that fit.
    """
    room = -(-len(owner) // num_groups)
    sequences = []
    for group in range(num_groups):
        lacking = [
            (tuple(sorted(u for u in child.parents if owner.get(u, group) != group)), child)
            for child in children
            if maker[child.uid] == group
        ]
        lacking.sort(key=lambda pair: (pair[0], pair[1].uid))
        sequences.append(_makings(lacking, room))
    return [
        {group: makings[r] for group, makings in enumerate(sequences) if r < len(makings)}
        for r in range(max((len(makings) for makings in sequences), default=0))
    ]


def _makings(lacking: Sequence[tuple[tuple[int, ...], Child]], room: int) -> list[Making]:
    """Cut one group's children, each with the parents it lacks, where these fill the room."""
    parts: list[tuple[set[int], list[Child]]] = []
    for needed, child in lacking:
        if parts and len(parts[-1][0].union(needed)) <= max(room, len(needed)):
            parts[-1][0].update(needed)
            parts[-1][1].append(child)
        else:
            parts.append((set(needed), [child]))
    makings, held = [], set[int]()
    for place, (needed_now, some) in enumerate(parts):
        needed_next = parts[place + 1][0] if place + 1 < len(parts) else set()
        borrow, held = needed_now - held, needed_now & needed_next
        makings.append(
            Making(
                children=tuple(some),
                borrow=tuple(sorted(borrow)),
                give_back=tuple(sorted(needed_now - needed_next)),
            )
        )
    return makings


def place_survivors(
    survivors: Sequence[int],
    chosen: Sequence[Child],
    owner: Mapping[int, int],
    num_groups: int,
) -> tuple[dict[int, int], list[Transfer]]:
    """Return the owner of each survivor and chosen child, and the survivors that must move.

    No group owns more than ceil(mu / groups). A survivor stays where it is unless its group is
    full; chosen children are made near their parents.
    """
    limit = -(-(len(survivors) + len(chosen)) // num_groups)
    loads = [0] * num_groups
    new_owner: dict[int, int] = {}
    crowded = []
    for uid in sorted(survivors):
        group = owner[uid]
        if loads[group] < limit:
            new_owner[uid] = group
            loads[group] += 1
        else:
            crowded.append(uid)
    moves = []
    for uid in crowded:
        target = loads.index(min(loads))
        new_owner[uid] = target
        loads[target] += 1
        moves.append(Transfer(uid, owner[uid], target))
    new_owner.update(_place_near_parents(chosen, owner, loads, limit))
    return new_owner, moves


def _place_near_parents(
    children: Sequence[Child], owner: Mapping[int, int], loads: list[int], limit: int
) -> dict[int, int]:
    """Give each child to the group with room that owns most of its parents, or the least loaded."""
    placed = {}
    for child in children:
        free = [group for group, load in enumerate(loads) if load < limit]
        owners = [owner[uid] for uid in child.parents if uid in owner]
        group = max(free, key=lambda g: (owners.count(g), -loads[g], -g))
        placed[child.uid] = group
        loads[group] += 1
    return placed
