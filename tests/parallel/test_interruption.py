"""A run that is stopped at any moment, as often as one likes, and ends as if it never had been."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mpi4py import MPI

import esgd_hpc
from esgd_hpc.api import RunResult
from esgd_hpc.checkpoint import files
from esgd_hpc.checkpoint.reader import open_checkpoint
from esgd_hpc.checkpoint.verify import verify_checkpoint
from esgd_hpc.commands.inspect.view import open_view
from esgd_hpc.parallel.interruption import Interruption
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.underway import Underway
from parallel.test_run import WORLD, WORSE, Blobs, Notes, StopAfter, digest, recipe


def after(questions: int, rank: int = 0) -> Callable[[], bool]:
    """Return a `should_stop` that is True on one rank once it was asked so often."""
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return WORLD.rank == rank and asked > questions

    return should_stop


STEEP = [{"name": "sgd", "learning_rate": [0.5, 4.0], "momentum": 0.9}]
VARIANTS: dict[str, dict[str, Any]] = {
    "esgd": {"evolution": {"steps": 2}, "fine_tuning": {"epochs": 1}},
    "champion": {**WORSE, "generations": 2, "sgd": {**WORSE["sgd"], "optimizers": STEEP}},
    "rare_checkpoints": {"checkpoint": {"every": 3}},
}


@pytest.mark.parallel(1, 2, 3, 4)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_is_stopped_again_and_again_ends_as_if_it_never_was(
    tmp_path: Path, variant: str
) -> None:
    folder = Path(WORLD.bcast(str(tmp_path)))
    pairs = 2 if WORLD.size == 4 else 1
    topology = {"ranks_per_group": pairs, "gradient_averaging": "mpi"}
    settings = recipe(**VARIANTS[variant], topology=topology)
    whole = esgd_hpc.run(settings, WORLD, task=Blobs())
    stops = 0
    while True:
        rank, questions = stops % WORLD.size, 5 + 4 * stops  # also asked while it waits for others
        result = esgd_hpc.run(
            settings, WORLD, task=Blobs(), output=folder, should_stop=after(questions, rank)
        )
        if result.unfinished is None:
            break
        stops += 1
        if WORLD.rank == 0:
            check_saved(folder, result)
        WORLD.Barrier()
    assert stops > 0
    assert digest(result, WORLD) == digest(whole, WORLD)
    assert numbers(result) == numbers(whole)
    assert result.history[-1].best_ever == whole.history[-1].best_ever
    assert files.interrupted(folder) == []


def check_saved(folder: Path, result: RunResult) -> None:
    """Fail unless what is on disk is whole, and what the result says. On rank 0."""
    made = result.unfinished
    assert made is not None
    if not made.has_begun:
        assert open_checkpoint(folder).generation == result.population.generation
        return
    (path,) = files.interrupted(folder)
    assert verify_checkpoint(path) == []
    saved = open_checkpoint(path)
    assert saved.underway is not None
    assert untimed(saved.underway) == untimed(made)
    assert saved.individuals == result.population.individuals
    for uid, weights in result.population.weights.items():
        assert saved.read_weights([uid])[uid].tobytes() == weights.tobytes()
    assert saved.best_weights().tobytes() == result.best_weights.tobytes()
    newest = open_view(folder, None)
    assert newest.underway == (saved.underway if newest.generation == made.generation - 1 else None)


def untimed(made: Underway) -> Underway:
    """Return it without what rank 0 alone has measured, and what moved before it was stopped."""
    return msgspec.structs.replace(made, seconds={}, traffic={})


def numbers(result: RunResult) -> list[tuple[Any, ...]]:
    return [(r.generation, r.best.hex(), r.elite_average.hex()) for r in result.history]


@pytest.mark.parallel(2, 4)
def test_another_number_of_groups_goes_on_with_what_was_interrupted(tmp_path: Path) -> None:
    folder = Path(WORLD.bcast(str(tmp_path)))
    settings = recipe()
    whole = esgd_hpc.run(settings, WORLD, task=Blobs())
    first = esgd_hpc.run(settings, WORLD, task=Blobs(), output=folder, should_stop=after(7))
    assert first.unfinished
    assert first.unfinished.has_begun
    if WORLD.rank == 0:
        notes = Notes()
        alone = esgd_hpc.run(settings, MPI.COMM_SELF, task=Blobs(), output=folder, progress=notes)
        assert any("going on in generation" in note for note in notes.notes)
        again = [i.fitness for i in alone.population.individuals]
        assert again == [i.fitness for i in whole.population.individuals]
    WORLD.Barrier()


@pytest.mark.parallel(1, 2)
def test_a_changed_recipe_begins_the_interrupted_generation_anew(tmp_path: Path) -> None:
    folder = Path(WORLD.bcast(str(tmp_path)))
    first = esgd_hpc.run(recipe(), WORLD, task=Blobs(), output=folder, should_stop=after(3))
    assert first.unfinished
    assert first.unfinished.has_begun
    for key, other in (("seed", 4), ("method", "sgd-only")):
        with pytest.raises(esgd_hpc.InputError, match=f"another {key} is another run"):
            esgd_hpc.run(recipe(**{key: other}), WORLD, task=Blobs(), output=folder, changing=[key])
    notes = Notes()
    changed = recipe(sgd={"epochs": 1})
    result = esgd_hpc.run(
        changed, WORLD, task=Blobs(), output=folder, progress=notes, changing=["sgd"]
    )
    assert result.finished
    assert any("interrupted is skipped: the recipe has changed" in note for note in notes.notes)


@pytest.mark.parallel(2)
def test_what_is_changed_on_purpose_is_changed_once_however_often_it_is_interrupted(
    tmp_path: Path,
) -> None:
    """Fitness gets another meaning in a run that has lost its best to training."""
    folder = Path(WORLD.bcast(str(tmp_path)))
    first = recipe(**VARIANTS["champion"])
    changed = recipe(
        **{**VARIANTS["champion"], "generations": 4}, fitness={"data": "training", "batch_size": 30}
    )
    names = ["generations", "fitness"]
    results = []
    for name, questions in (("whole", 10**6), ("stopped", 6)):
        esgd_hpc.run(first, WORLD, task=Blobs(), output=folder / name)
        for _ in range(30):
            result = esgd_hpc.run(
                changed,
                WORLD,
                task=Blobs(),
                output=folder / name,
                changing=names,
                should_stop=after(questions),
            )
            if result.finished:
                break
            questions += 9
        results.append(result)
        changes = open_checkpoint(folder / name).history.changes
        assert sorted(change.key for change in changes) == [
            "fitness.batch_size",
            "fitness.data",
            "generations",
        ]
    whole, stopped = results
    assert digest(stopped, WORLD) == digest(whole, WORLD)
    assert stopped.best.fitness == whole.best.fitness


@pytest.mark.parallel(1, 2)
def test_no_generation_is_lost_to_a_changed_recipe_that_would_go_back_far(tmp_path: Path) -> None:
    folder = Path(WORLD.bcast(str(tmp_path)))
    rare = {"every": 100}
    stop = StopAfter(2)
    stopped = after(3)
    settings = recipe(generations=9, checkpoint=rare)
    first = esgd_hpc.run(
        settings,
        WORLD,
        task=Blobs(),
        output=folder,
        progress=stop,
        should_stop=lambda: stop.asked() and stopped(),
    )
    assert first.unfinished
    assert first.population.generation > 0
    changed = recipe(generations=9, checkpoint=rare, sgd={"epochs": 1})
    with pytest.raises(esgd_hpc.InputError, match=r"stopped in generation .* is generation 0"):
        esgd_hpc.run(changed, WORLD, task=Blobs(), output=folder, changing=["sgd"])
    assert files.interrupted(folder)


@pytest.mark.parallel(1, 2)
def test_a_damaged_interrupted_generation_is_skipped_and_said_so(tmp_path: Path) -> None:
    folder = Path(WORLD.bcast(str(tmp_path)))
    whole = esgd_hpc.run(recipe(), WORLD, task=Blobs())
    esgd_hpc.run(recipe(), WORLD, task=Blobs(), output=folder, should_stop=after(4))
    if WORLD.rank == 0:
        path = folder / files.INTERRUPTED / files.leader_name(0)
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    WORLD.Barrier()
    notes = Notes()
    result = esgd_hpc.run(recipe(), WORLD, task=Blobs(), output=folder, progress=notes)
    assert any(note.startswith("interrupted is skipped: leader_00000") for note in notes.notes)
    assert digest(result, WORLD) == digest(whole, WORLD)


@pytest.mark.parallel(1, 2)
def test_a_run_stops_before_what_cannot_end_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(WORLD.bcast(str(tmp_path)))
    endless = recipe(generations=10**6, run={"time_limit": 1 / 60})
    started = time.monotonic()
    result = esgd_hpc.run(endless, WORLD, task=Blobs(), output=folder)
    assert 0.5 < time.monotonic() - started < 10
    assert result.unfinished
    # What has passed before counts; and so does the scheduler's end, if it is earlier.
    for limit, end, started in ((1.0, 3600, -61.0), (60.0, -5, 0.0), (0.0, -5, 0.0)):
        monkeypatch.setitem(os.environ, "ESGD_END_TIME", str(int(time.time()) + end))
        late = recipe(generations=10**6, run={"time_limit": limit})
        again = esgd_hpc.run(
            late, WORLD, task=Blobs(), output=folder, started=time.monotonic() + started
        )
        assert again.unfinished
        assert untimed(again.unfinished) == untimed(result.unfinished)


@pytest.mark.parallel(3, 4)
def test_news_reaches_groups_that_are_far_ahead_and_far_behind() -> None:
    """One rank is asked; all learn of it, those that wait for others already and those at work."""
    for ranks_per_group in (1, WORLD.size // 2):
        if WORLD.size % ranks_per_group:
            continue
        topology = Topology(WORLD, ranks_per_group)
        asked = WORLD.rank == WORLD.size - 1
        interruption = Interruption(topology, lambda asked=asked: asked)  # type: ignore[misc]
        rounds = 0
        if topology.group_number:  # the first group has nothing to do
            while not interruption.should_stop():
                time.sleep(0.01)
                rounds += 1
                assert rounds < 500
        interruption.meet("a test")
        assert interruption.requested()
        assert interruption.should_stop()
        interruption.meet("a test")  # nothing is left on its way
        assert not topology.control.Iprobe()
        topology.close()
