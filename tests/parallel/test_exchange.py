"""Weights between leaders: point to point and broadcast, bit for bit."""

import numpy as np
import pytest
from mpi4py import MPI

from esgd_hpc.parallel import exchange as exchange_module
from esgd_hpc.parallel.exchange import exchange, send_to_all
from esgd_hpc.population import Transfer, Weights

WORLD = MPI.COMM_WORLD
SIZE = 4321


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "PIECE", 1000)


def vector(uid: int) -> Weights:
    return np.random.default_rng(uid).random(SIZE, np.float32)


def owned() -> dict[int, Weights]:
    return {uid: vector(uid) for uid in range(10 * WORLD.rank, 10 * WORLD.rank + 3)}


def others(rank: int) -> tuple[int, ...]:
    return tuple(r for r in range(WORLD.size) if r != rank)


@pytest.mark.parallel(2, 3, 4)
@pytest.mark.parametrize("num_broadcast", [0, 1, 3])
def test_everything_arrives_everywhere_bit_for_bit(num_broadcast: int) -> None:
    transfers = [
        Transfer(10 * source + n, source, others(source), to_all=n < num_broadcast)
        for source in range(WORLD.size)
        for n in range(3)
    ]
    arrived: dict[int, Weights] = {}
    exchange(WORLD, transfers, owned().__getitem__, arrived, SIZE)
    assert set(arrived) == {10 * source + n for source in others(WORLD.rank) for n in range(3)}
    for uid, found in arrived.items():
        assert found.tobytes() == vector(uid).tobytes()


@pytest.mark.parallel(3, 4)
def test_only_targets_keep_what_is_sent_and_what_is_broadcast() -> None:
    transfers = [
        Transfer(0, 0, (1,)),
        Transfer(1, 0, (2,), to_all=True),
        Transfer(20, 2, (0, 1)),
        Transfer(10, 1, (0,), to_all=True),
    ]
    arrived: dict[int, Weights] = {}
    exchange(WORLD, transfers, owned().__getitem__, arrived, SIZE)
    assert {u: w.tobytes() for u, w in arrived.items()} == {
        t.uid: vector(t.uid).tobytes() for t in transfers if WORLD.rank in t.targets
    }


@pytest.mark.parallel(2, 3, 4)
def test_a_vector_is_sent_to_all() -> None:
    source = WORLD.size - 1
    mine = vector(7) if WORLD.rank == source else None
    assert send_to_all(WORLD, mine, source, SIZE).tobytes() == vector(7).tobytes()
