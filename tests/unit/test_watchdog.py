"""Whom the watchdog names, in which order, from what ranks tell of themselves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esgd_hpc import pulse
from esgd_hpc.parallel.watchdog import (
    MAX_NAMED,
    Beat,
    Frame,
    Heard,
    _process_state,
    report,
    silent_ranks,
    suspects,
)

LIMIT = 60.0
NOW = 1000.0
PACKAGE = "/venv/lib/site-packages"
WORK = Frame("/home/me/task.py", 7, "loss")
SUM = Frame(f"{PACKAGE}/horovod/torch/mpi_ops.py", 1234, "synchronize")
GATHER = Frame(f"{PACKAGE}/esgd_hpc/parallel/exchange.py", 51, "gather_records")


def heard(
    idle: float, at: Frame = WORK, *, waiting: bool = False, silent: float = 1.0, pid: int = 1
) -> Heard:
    beat = Beat("node1", pid, "training individual 3", waiting, idle, [at, Frame("run.py", 1, "f")])
    return Heard(beat, NOW - silent)


def named(ranks_per_group: int, *ranks: Heard) -> list[int]:
    return [s.rank for s in suspects(dict(enumerate(ranks)), NOW, LIMIT, ranks_per_group)]


def test_a_run_that_goes_on_is_left_alone() -> None:
    assert named(2, heard(0.1), heard(LIMIT - 1, SUM), heard(59.0), heard(3.0)) == []


def test_of_a_group_that_stands_still_the_rank_outside_a_collective_comes_first() -> None:
    for idle in (LIMIT, 70.0, 90.0):
        assert named(2, heard(1.0), heard(1.0), heard(80.0, SUM), heard(idle)) == [3, 2]
    # All in a collective, which is where a broken network shows: the oldest first.
    assert named(2, heard(61.0, SUM), heard(62.0, SUM), heard(1.0), heard(1.0)) == [1, 0]


def test_a_group_may_wait_for_another_one_as_long_as_that_goes_on() -> None:
    waits = heard(9999.0, GATHER, waiting=True)
    assert named(2, waits, heard(9999.0, SUM), heard(1.0), heard(1.0)) == []
    assert named(1, waits, waits, heard(1.0), waits) == []
    # The other one stops: it alone is named.
    assert named(2, waits, heard(9999.0, SUM), heard(61.0), heard(61.0, SUM)) == [2, 3]
    assert named(1, waits, waits, heard(61.0), waits) == [2]


def test_a_group_may_wait_for_a_rank_of_its_own_that_goes_on() -> None:
    assert named(4, heard(0.5), heard(999.0, SUM), heard(999.0, SUM), heard(999.0, SUM)) == []


def test_where_everybody_waits_for_everybody_all_are_named() -> None:
    waits = [heard(idle, GATHER, waiting=True) for idle in (70.0, 80.0, 60.0)]
    assert named(1, *waits) == [1, 0, 2]
    # One is no longer with the others in the collective, nor can its group see it.
    assert named(2, *waits, heard(65.0)) == [3, 1, 0, 2]


def test_a_silent_rank_comes_before_all_others() -> None:
    stopped = heard(0.2, silent=LIMIT + 1)
    assert named(2, heard(61.0, SUM), stopped, heard(1.0), heard(1.0)) == [1, 0]
    assert named(2, heard(10.0, SUM), stopped, heard(1.0), heard(1.0)) == [1]
    assert named(1, heard(99.0), stopped, heard(0.0, silent=LIMIT + 2)) == [2, 1, 0]
    assert named(1, stopped, heard(99.0, GATHER, waiting=True)) == [0]


def test_ranks_that_have_left_are_no_more_looked_at() -> None:
    ranks = {3: heard(61.0), 0: heard(0.0), 1: heard(0.0)}  # 2, of the same group, has left
    assert [s.rank for s in suspects(ranks, NOW, LIMIT, 2)] == [3]
    assert suspects({}, NOW, LIMIT, 2) == []


def test_who_hears_one_rank_judges_its_silence_alone() -> None:
    assert silent_ranks({0: heard(999.0)}, NOW, LIMIT) == []
    assert [s.rank for s in silent_ranks({0: heard(0.0, silent=LIMIT)}, NOW, LIMIT)] == [0]


@given(
    st.lists(
        st.builds(
            heard,
            st.floats(0.0, 100.0),
            st.sampled_from([WORK, SUM, GATHER]),
            waiting=st.booleans(),
            silent=st.floats(0.0, 100.0),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 4),
)
def test_nobody_who_makes_progress_is_named_and_a_world_that_stands_still_never_is_left(
    ranks: list[Heard], ranks_per_group: int
) -> None:
    found = suspects(dict(enumerate(ranks)), NOW, LIMIT, ranks_per_group)
    assert all(s.silent >= LIMIT or s.heard.beat.idle >= LIMIT for s in found)
    assert len({s.rank for s in found}) == len(found)
    if all(h.beat.idle >= LIMIT for h in ranks):
        assert found
    silent = [s.silent > 0.0 for s in found]
    assert silent == sorted(silent, reverse=True)


def test_the_report_names_place_phase_ages_and_stack_of_a_handful() -> None:
    ranks = dict(enumerate([heard(61.0, SUM, pid=70 + rank) for rank in range(8)]))
    ranks[5] = heard(2.0, silent=62.0, pid=75)
    found = suspects(ranks, NOW, LIMIT, 8)
    text = report(found, NOW, LIMIT, 8, {5: "its process was stopped"})
    assert "no progress for 60 s (run.watchdog = 1 minutes)" in text
    assert "rank 5, host node1, process 75, group 0: silent: its process was stopped" in text
    assert "last progress 64.0 s ago, last heartbeat 62.0 s ago, at: training individual 3" in text
    assert 'File "/home/me/task.py", line 7, in loss' in text
    assert text.count("host node1") == MAX_NAMED
    assert "and 3 more ranks stand still" in text
    unknown = report(found, NOW, LIMIT, 8, {})
    assert "silent: its process was stopped, its node hangs, or" in unknown


def test_a_beat_travels() -> None:
    beat = heard(1.5).beat
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(beat), type=Beat) == beat


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="/proc tells states of processes")
def test_the_state_of_a_process_is_told() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        os.kill(process.pid, signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while "was stopped (state T" not in _process_state(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert _process_state(process.pid) == ""


# The pulse ----------------------------------------------------------------------------------------


def test_the_pulse_comes_back_to_what_it_was_after_waiting() -> None:
    pulse.doing("training")
    with pulse.waiting("for others"):
        with pytest.raises(KeyError), pulse.waiting("for more"):
            raise KeyError(pulse.now().doing)
        assert (pulse.now().doing, pulse.now().waiting) == ("for others", True)
    after = pulse.now()
    assert (after.doing, after.waiting) == ("training", False)
    pulse.progress()
    assert after.since <= pulse.now().since <= time.monotonic()
