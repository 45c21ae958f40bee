"""Weights between leaders: point to point and broadcast, bit for bit."""

import gc
import weakref

import numpy as np
import pytest
from mpi4py import MPI

from esgd_hpc.parallel import exchange as exchange_module
from esgd_hpc.parallel.exchange import Exchange, send_to_all
from esgd_hpc.population import Weights

WORLD = MPI.COMM_WORLD
SIZE = 4321


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "PIECE", 1000)


def vector(uid: int) -> Weights:
    return np.random.default_rng(uid).random(SIZE, np.float32)


def owned() -> dict[int, Weights]:
    return {uid: vector(uid) for uid in range(10 * WORLD.rank, 10 * WORLD.rank + 3)}


def others(rank: int) -> list[int]:
    return [r for r in range(WORLD.size) if r != rank]


@pytest.mark.parallel(2, 3, 4)
@pytest.mark.parametrize("num_broadcast", [0, 1, 3])
def test_everything_arrives_everywhere_bit_for_bit(num_broadcast: int) -> None:
    exchange, own = Exchange(WORLD, SIZE), owned()
    uids = [10 * source + n for source in range(WORLD.size) for n in range(3)]
    for uid in uids:
        source = uid // 10
        if uid % 10 < num_broadcast:
            exchange.broadcast(uid, source, own.get(uid))
        elif source == WORLD.rank:
            for target in others(source):
                exchange.send(own[uid], target)
        else:
            exchange.ask(uid, source)
        exchange.poll()
    foreign = [uid for uid in uids if uid not in own]
    for uid in reversed(foreign):
        assert exchange.get(uid).tobytes() == vector(uid).tobytes()
        assert exchange.get(uid) is exchange.get(uid)
    exchange.forget(foreign[0])
    with pytest.raises(KeyError):
        exchange.get(foreign[0])
    exchange.forget_all()
    exchange.close()


@pytest.mark.parallel(2)
def test_what_is_not_wanted_any_more_still_arrives_before_it_is_forgotten() -> None:
    """Else the next thing that is asked for would be this one."""
    exchange = Exchange(WORLD, SIZE)
    if WORLD.rank == 0:
        for uid in (1, 2):
            exchange.send(vector(uid), 1)
    else:
        exchange.ask(1, 0)
        exchange.forget(1)
        exchange.ask(2, 0)
        assert exchange.get(2).tobytes() == vector(2).tobytes()
    exchange.close()


@pytest.mark.parallel(2)
def test_sending_waits_for_nobody_and_what_has_left_is_let_go() -> None:
    """Each vector is far larger than what MPI sends before it is asked for."""
    size = 1_000_000
    exchange = Exchange(WORLD, size)
    sent = [np.full(size, uid, np.float32) for uid in range(3)]
    alive = [weakref.ref(each) for each in sent]
    if WORLD.rank == 0:
        for each in sent:
            exchange.send(each, 1)
        sent.clear()
        del each
        gc.collect()
        assert all(ref() is not None for ref in alive)
    WORLD.Barrier()  # comes while nothing was received
    if WORLD.rank == 1:
        for uid in range(3):
            exchange.ask(uid, 0)
        for uid in range(3):
            assert (exchange.get(uid) == uid).all()
        WORLD.send(None, 0)
    else:
        while not WORLD.Iprobe(1):
            exchange.poll()
        WORLD.recv(source=1)
        exchange.close()
        gc.collect()
        assert not any(ref() is not None for ref in alive)


@pytest.mark.parallel(2, 3, 4)
def test_a_vector_is_sent_to_all() -> None:
    source = WORLD.size - 1
    mine = vector(7) if WORLD.rank == source else None
    assert send_to_all(WORLD, mine, source, SIZE).tobytes() == vector(7).tobytes()
