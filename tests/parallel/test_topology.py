"""The world splits as said, ranks agree before they act, and weights arrive as they left."""

import numpy as np
import pytest
from mpi4py import MPI

from esgd_hpc.errors import InputError, RunError
from esgd_hpc.parallel import exchange as exchange_module
from esgd_hpc.parallel.agreement import closed_together, first_told, on_root, together
from esgd_hpc.parallel.exchange import exchange, send_to_all
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import Transfer

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


@pytest.mark.parallel(2, 3, 4)
def test_transfers_arrive_bit_for_bit_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "PIECE", 1000)
    size = 4321
    mine = {
        10 * WORLD.rank + n: np.random.default_rng(10 * WORLD.rank + n).random(size, np.float32)
        for n in range(3)
    }
    # Everybody sends everything to everybody.
    transfers = [
        Transfer(10 * source + n, source, target)
        for source in range(WORLD.size)
        for target in range(WORLD.size)
        for n in range(3)
        if source != target
    ]
    arrived: dict[int, np.ndarray] = {}
    exchange(WORLD, transfers, mine.__getitem__, arrived, size)
    assert len(arrived) == 3 * (WORLD.size - 1)
    for uid, vector in arrived.items():
        assert vector.tobytes() == np.random.default_rng(uid).random(size, np.float32).tobytes()

    source = WORLD.size - 1
    sent = send_to_all(WORLD, mine[10 * source] if WORLD.rank == source else None, source, size)
    assert sent.tobytes() == np.random.default_rng(10 * source).random(size, np.float32).tobytes()
