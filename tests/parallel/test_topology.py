"""The world splits as said, ranks agree before they act, and weights arrive as they left."""

import pytest
from mpi4py import MPI

from esgd_hpc.errors import InputError, RunError
from esgd_hpc.parallel.agreement import closed_together, first_told, on_root, together
from esgd_hpc.parallel.topology import Topology

WORLD = MPI.COMM_WORLD


@pytest.mark.parallel(1, 2, 4)
def test_groups_are_consecutive_ranks_and_peers_hold_the_same_place() -> None:
    for size in (n for n in (1, 2, 4) if WORLD.size % n == 0):
        with closed_together(Topology(WORLD, size)) as topology:
            assert topology.num_groups == WORLD.size // size
            assert topology.group_number == WORLD.rank // size
            assert topology.group.allgather(WORLD.rank) == [
                topology.group_number * size + place for place in range(size)
            ]
            assert topology.is_leader == (WORLD.rank % size == 0)
            assert topology.peers.rank == topology.group_number
            assert topology.peers.size == topology.num_groups
            assert topology.local_rank == WORLD.rank  # one machine


@pytest.mark.parallel(3, 4)
def test_a_world_that_does_not_divide_is_refused_with_the_remedy() -> None:
    ranks_per_group = WORLD.size - 1
    starts = {3: "start 2 or 4 ranks", 4: "start 3 or 6 ranks"}[WORLD.size]
    with pytest.raises(InputError, match=starts):
        Topology(WORLD, ranks_per_group)


@pytest.mark.parallel(1, 2, 3)
def test_an_error_on_one_rank_is_raised_on_all() -> None:
    def action() -> int:
        if WORLD.rank == WORLD.size - 1:
            raise ZeroDivisionError("one divided by nothing")
        return WORLD.rank

    with pytest.raises(
        RunError, match=rf"counting: ZeroDivisionError.*\.py:\d+, rank {WORLD.size - 1}"
    ):
        together(WORLD, "counting", action)
    with pytest.raises(InputError, match="bad key"):
        on_root(WORLD, "reading", lambda: (_ for _ in ()).throw(InputError("bad key")))
    assert together(WORLD, "counting", lambda: WORLD.rank) == WORLD.rank
    assert on_root(WORLD, "reading", lambda: 41 + 1) == 42
    last = WORLD.size - 1
    assert first_told(WORLD, "here" if WORLD.rank == last else "") == "here"
