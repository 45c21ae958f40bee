"""What children there are, in what order groups make them, and which parents travel for that.

Pure planning, done on rank 0 and broadcast. A plan is a list of rounds. In a round each group makes
some children, one after another; before them, the parents that it lacks come from their owners. A
borrowed parent stays until the group is done with it, so that it comes once.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from esgd_hpc import rng
from esgd_hpc.config import Recipe
from esgd_hpc.errors import RunError
from esgd_hpc.evolution import operators
from esgd_hpc.population import Individual, Transfer

LOANS = 12
"""Parents that a leader has on loan at most, or as many as a child lacks where that is more."""


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
    give_back: tuple[int, ...] = ()
    """Borrowed uids that the group forgets after them."""


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """Parents that travel, then children that groups make, one after another in each."""

    transfers: tuple[Transfer, ...]
    makings: dict[int, Making]
    """By group; those without children in this round are absent."""


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan moves, in vectors of one individual; `vector_bytes` has their size."""

    received: tuple[int, ...]
    """By group, with what a broadcast brings to groups that have no use for it."""
    least: int
    """What it would take if each group got each vector that it lacks exactly once."""
    most_borrowed: int
    """Most vectors that a group has on loan at a time."""

    def moved_bytes(self, size: int) -> int:
        """Return the bytes of all groups together, for flat vectors of shape [size]."""
        return sum(self.received) * size * np.dtype(np.float32).itemsize


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


def plan_rounds(
    children: Sequence[Child],
    maker: Mapping[int, int],
    owner: Mapping[int, int],
    num_groups: int,
) -> list[Round]:
    """Order the children of each group and say what it borrows and gives back around them.

    `owner` maps uid to group; a parent without owner (the anchor) is at hand everywhere. Groups
    meet once a round, so a round has all children whose missing parents fit in `LOANS`.
    """
    lacking: list[dict[frozenset[int], list[Child]]] = [{} for _ in range(num_groups)]
    for child in children:
        group = maker[child.uid]
        needed = frozenset(uid for uid in child.parents if owner.get(uid, group) != group)
        lacking[group].setdefault(needed, []).append(child)
    # Who is wanted by many comes first, so that they want it at the same time.
    wanted = Counter(uid for sets in lacking for uid in frozenset().union(*sets))
    parts = [_parts(sets, wanted) for sets in lacking]
    rounds = []
    for number in range(max(map(len, parts), default=0)):
        targets: dict[int, list[int]] = {}
        makings = {}
        for group, some in enumerate(parts):
            if number < len(some):
                borrow, makings[group] = some[number]
                for uid in borrow:
                    targets.setdefault(uid, []).append(group)
        transfers = tuple(
            Transfer(uid, owner[uid], tuple(groups), is_broadcast_cheaper(len(groups), num_groups))
            for uid, groups in sorted(targets.items())
        )
        rounds.append(Round(transfers=transfers, makings=makings))
    return rounds


def _parts(
    waiting: dict[frozenset[int], list[Child]], wanted: Mapping[int, int]
) -> list[tuple[list[int], Making]]:
    """Cut one group's children, by the parents they lack, into rounds, each with what it borrows.

    Next come those that need the fewest new loans, so that loans are done with early.
    """
    uses = Counter(uid for needed in waiting for uid in needed)
    held: set[int] = set()

    def next_set() -> frozenset[int]:
        return min(
            waiting,
            key=lambda needed: (
                len(needed - held),
                -len(needed),
                sum(uses[uid] for uid in needed - held),
                -sum(wanted[uid] for uid in needed - held),
                sorted(needed),
            ),
        )

    parts = []
    while waiting:
        needed = next_set()
        borrow: set[int] = set()
        some: list[Child] = []
        while len(held | needed) <= max(LOANS, len(needed)):
            borrow |= needed - held
            held |= needed
            uses.subtract(needed)
            some += waiting.pop(needed)
            if not waiting:
                break
            needed = next_set()
        free = {uid for uid in held if not uses[uid]}
        if waiting:  # the next ones must have room, even where that means to borrow again
            needed = next_set()
            rest = sorted(held - free - needed, key=lambda uid: (uses[uid], uid))
            free.update(rest[: max(0, len((held - free) | needed) - LOANS)])
        held -= free
        parts.append((sorted(borrow), Making(children=tuple(some), give_back=tuple(sorted(free)))))
    return parts


def is_broadcast_cheaper(num_targets: int, num_groups: int) -> bool:
    """Tell whether to send to all groups at once: the owner would send to many one by one.

    Nearly all must want it, since the others get it too.
    """
    others = num_groups - 1
    return num_targets > math.log2(num_groups) + 1 and others <= 1.05 * num_targets


def traffic(rounds: Sequence[Round], moves: Sequence[Transfer], num_groups: int) -> Traffic:
    """Count what the transfers of a plan, and the moves beside them, bring to each group."""
    received, held = [0] * num_groups, [set[int]() for _ in range(num_groups)]
    lacked = [set[int]() for _ in range(num_groups)]
    most_borrowed = 0
    for each in rounds:
        for transfer in each.transfers:
            for group in transfer.targets:
                held[group].add(transfer.uid)
                lacked[group].add(transfer.uid)
        most_borrowed = max(most_borrowed, *map(len, held))
        for group, making in each.makings.items():
            held[group].difference_update(making.give_back)
    transfers = [*(t for each in rounds for t in each.transfers), *moves]
    for transfer in transfers:
        everyone = set(range(num_groups)) - {transfer.source}
        for group in everyone if transfer.to_all else transfer.targets:
            received[group] += 1
    least = sum(map(len, lacked)) + sum(len(move.targets) for move in moves)
    return Traffic(received=tuple(received), least=least, most_borrowed=most_borrowed)


def last_uses(rounds: Sequence[Round]) -> dict[int, int]:
    """Return the number of the last round in which each parent is needed, by uid."""
    return {
        uid: number
        for number, each in enumerate(rounds)
        for making in each.makings.values()
        for child in making.children
        for uid in child.parents
    }
