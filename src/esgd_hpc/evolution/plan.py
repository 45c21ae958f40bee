"""What children there are, in what order each group makes them, and which parents travel for that.

Pure planning, done on rank 0. A group makes its children in stages. While it makes those of one
stage, the parents that the next one lacks are on their way from their owners; a parent on loan
stays until the group is done with it, so that it comes once. Owners send whenever they can, so
groups do not wait for one another. What nearly all groups lack is broadcast before.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from esgd_hpc import rng
from esgd_hpc.config import Recipe
from esgd_hpc.errors import RunError
from esgd_hpc.evolution import operators
from esgd_hpc.population import Broadcast, Individual, Transfer

LOANS = 12
"""Parents on loan or on their way that a leader has room for, or as many as the children of two
stages in a row lack where that is more."""


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


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """Some children that one group makes, one after another, out of the same parents on loan."""

    forget: tuple[int, ...]
    """uids of loans that it is done with, or has no room for, when the stage begins."""
    borrow: tuple[Transfer, ...]
    """What it lacks; asked for when the stage before begins."""
    children: tuple[Child, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How some children are made: what is broadcast, then the stages of each group."""

    broadcasts: tuple[Broadcast, ...]
    stages: tuple[tuple[Stage, ...], ...]
    """By group."""

    def parts(self) -> list["Part"]:
        """Return what concerns each group."""
        sends: list[list[Transfer]] = [[] for _ in self.stages]
        for stages in self.stages:
            for stage in stages:
                for transfer in stage.borrow:
                    sends[transfer.source].append(transfer)
        return [
            Part(broadcasts=self.broadcasts, sends=tuple(some), stages=stages)
            for some, stages in zip(sends, self.stages, strict=True)
        ]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What one group does of a plan."""

    broadcasts: tuple[Broadcast, ...]
    sends: tuple[Transfer, ...]
    """In the order in which each target asks for them."""
    stages: tuple[Stage, ...]


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan moves, in vectors of one individual."""

    received: tuple[int, ...]
    """By group, with what a broadcast brings to groups that have no use for it."""
    least: int
    """What it would take if each group got each vector that it lacks exactly once."""
    most_borrowed: int
    """Most vectors that a group has on loan, or on their way to it, at a time."""

    def moved_bytes(self, size: int) -> int:
        """Return the bytes of all groups together, for flat vectors of shape [size]."""
        return sum(self.received) * size * np.dtype(np.float32).itemsize

    def least_bytes(self, size: int) -> int:
        """Return the bytes of `least`, for flat vectors of shape [size]."""
        return self.least * size * np.dtype(np.float32).itemsize


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
    wheel = operators.Roulette(scores)
    children = []
    for uid in range(first_uid, first_uid + recipe.population.offspring):
        stream = rng.stream(recipe.seed, generation, step, uid, rng.Purpose.PARENTS)
        rho = rhos[int(stream.random() * len(rhos))]
        sigma_0 = float(stream.uniform(sigma.low, sigma.high))
        places = wheel.draw(rho, stream)
        children.append(
            Child(
                uid=uid,
                parents=tuple(parents[place].uid for place in places),
                noise_seed=str(rng.key(recipe.seed, generation, step, uid, rng.Purpose.MUTATION)),
                sigma=sigma_0 / generation,
            )
        )
    return children


def plan_stages(
    children: Sequence[Child],
    maker: Mapping[int, int],
    owner: Mapping[int, int],
    num_groups: int,
) -> Plan:
    """Order the children of each group and say what it borrows and forgets between them.

    `owner` maps uid to group; a parent without owner (the anchor) is at hand everywhere.
    """
    lacking: list[dict[tuple[int, ...], list[Child]]] = [{} for _ in range(num_groups)]
    for child in children:
        group = maker[child.uid]
        lacked = tuple(sorted(u for u in child.parents if owner.get(u, group) != group))
        lacking[group].setdefault(lacked, []).append(child)
    wanted = Counter(uid for sets in lacking for uid in {u for lacked in sets for u in lacked})
    broadcasts = tuple(
        Broadcast(uid, owner[uid])
        for uid, count in wanted.most_common(LOANS // 2)
        if is_broadcast_cheaper(count, num_groups)
    )
    return Plan(
        broadcasts=broadcasts,
        stages=tuple(
            tuple(_stages(sets, [b.uid for b in broadcasts if b.source != group], owner, group))
            for group, sets in enumerate(lacking)
        ),
    )


def _stages(
    waiting: dict[tuple[int, ...], list[Child]],
    come: Sequence[int],
    owner: Mapping[int, int],
    group: int,
) -> Iterator[Stage]:
    """Yield the stages of one group's children, given by the parents that they lack.

    `come` has what is broadcast. Next are those that need the fewest new loans, so that the first
    ones need none and loans are done with early.
    """
    uses = Counter(uid for lacked in waiting for uid in lacked)
    held = set(come)

    def next_lacked() -> tuple[int, ...]:
        return min(
            waiting,
            key=lambda lacked: (
                sum(uid not in held for uid in lacked),
                -len(lacked),
                sum(uses[uid] for uid in lacked if uid not in held),
                lacked,
            ),
        )

    lacked = next_lacked() if waiting else ()
    while waiting:
        borrow = [uid for uid in lacked if uid not in held]
        held.update(borrow)
        children = waiting.pop(lacked)
        uses.subtract(lacked)
        following = next_lacked() if waiting else ()
        others = held.difference(lacked, following)
        forget = {uid for uid in others if not uses[uid]}
        # The next ones must have room, even where that means to borrow again.
        room = max(LOANS, len({*lacked, *following}))
        least_used = sorted(others - forget, key=lambda uid: (uses[uid], uid))
        missing = len(held.union(following)) - len(forget) - room
        forget.update(least_used[: max(0, missing)])
        held -= forget
        yield Stage(
            forget=tuple(sorted(forget)),
            borrow=tuple(Transfer(uid, owner[uid], group) for uid in borrow),
            children=tuple(children),
        )
        lacked = following


def is_broadcast_cheaper(num_targets: int, num_groups: int) -> bool:
    """Tell whether to send to all groups at once: the owner would send to many one by one.

    Nearly all must want it, since the others get it too.
    """
    others = num_groups - 1
    return num_targets > math.log2(num_groups) + 1 and others <= 1.05 * num_targets


def traffic(plan: Plan, moves: Sequence[Transfer]) -> Traffic:
    """Count what a plan, and the moves beside it, bring to each group."""
    received = [0] * len(plan.stages)
    least, most_borrowed = len(moves), 0
    for group, stages in enumerate(plan.stages):
        held = {b.uid for b in plan.broadcasts if b.source != group}
        received[group] += len(held)
        useful = {uid for stage in stages for c in stage.children for uid in c.parents}
        lacked = held & useful
        for number, stage in enumerate(stages):
            held -= set(stage.forget)
            held.update(transfer.uid for transfer in stage.borrow)
            lacked.update(transfer.uid for transfer in stage.borrow)
            received[group] += len(stage.borrow)
            coming = stages[number + 1].borrow if number + 1 < len(stages) else ()
            most_borrowed = max(most_borrowed, len(held) + len(coming))
        least += len(lacked)
    for move in moves:
        received[move.target] += 1
    return Traffic(received=tuple(received), least=least, most_borrowed=most_borrowed)
