"""The promises of a run, through the Python interface: bits, Theorem 1, bad individuals."""

import hashlib
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn

import esgd_hpc
from esgd_hpc.api import RunResult
from esgd_hpc.checkpoint.reader import open_checkpoint
from esgd_hpc.checkpoint.verify import verify_checkpoint
from esgd_hpc.config import Choice, Drawn, Range
from esgd_hpc.evolution import making, placement, plan
from esgd_hpc.population import HyperparameterValue, Transfer
from esgd_hpc.progress import Silent
from esgd_hpc.tasks.base import Batch, ClassificationTask

WORLD = MPI.COMM_WORLD


class Blobs(ClassificationTask):
    """Three clouds of points; a network with BatchNorm and dropout."""

    hyperparameters = {  # noqa: RUF012
        "dropout": Range(0.0, 0.5),
        "kind": Choice(["a", "b"]),
        "batch_size": Range(16, 32),
    }

    def __init__(self) -> None:
        stream = torch.Generator().manual_seed(1)
        targets = torch.arange(150) % 3
        inputs = torch.randn(150, 4, generator=stream) + targets.unsqueeze(1) * 0.7
        super().__init__(
            training=(inputs[:100], targets[:100]), validation=(inputs[100:], targets[100:])
        )
        self.configured: list[dict[str, HyperparameterValue]] = []

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)
        )

    def configure(self, model: nn.Module, hyperparameters: Any) -> None:
        self.configured.append(dict(hyperparameters))
        model[3].p = hyperparameters["dropout"]  # type: ignore[index]


def recipe(**changes: Any) -> esgd_hpc.Recipe:
    data: dict[str, Any] = {
        "task": "blobs",
        "seed": 3,
        "generations": 3,
        "population": {"parents": 5, "offspring": 7, "initialization": "perturb"},
        "sgd": {
            "epochs": 2,
            "optimizers": [
                {"name": "sgd", "learning_rate": [0.01, 0.3], "momentum": [0.1, 0.9]},
                {"name": "adam", "learning_rate": [1e-3, 1e-2]},
            ],
        },
        "topology": {"gradient_averaging": "mpi"},
    }
    for key, value in changes.items():
        if isinstance(value, dict):
            data[key] = {**data.get(key, {}), **value}
        else:
            data[key] = value
    return esgd_hpc.recipe_from(data)


def digest(result: RunResult, comm: MPI.Comm) -> str:
    """Return a hash of everything that must not depend on ranks or groups."""
    weights = {u: w for part in comm.allgather(result.population.weights) for u, w in part.items()}
    text = hashlib.sha256()
    for individual in result.population.individuals:
        record = (individual.uid, individual.fitness.hex(), individual.parents, individual.draw)
        text.update(repr(record).encode())
        text.update(weights[individual.uid].tobytes())
    text.update(result.best_weights.tobytes())
    return text.hexdigest()


def alone(task: ClassificationTask, settings: esgd_hpc.Recipe) -> str:
    """Return the digest of the same run on this rank alone: one group of one rank."""
    return digest(esgd_hpc.run(settings, MPI.COMM_SELF, task=task), MPI.COMM_SELF)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "random_initialization": {"population": {"initialization": "random"}},
    "two_evolution_steps": {"evolution": {"steps": 2, "parents_per_child": [1, 2, 3]}},
    "all_elite": {"evolution": {"elite_fraction": 1.0, "selection": "rank"}},
    "recalibrated": {"evolution": {"batchnorm": "recalibrate", "recalibration_batches": 3}},
    "back_off_sometimes": {"sgd": {"backoff_probability": 0.5}},
    "fine_tuning": {"fine_tuning": {"epochs": 2, "learning_rate": 0.01}},
    "one_parent": {"population": {"parents": 1}, "evolution": {"parents_per_child": 1}},
    "training_fitness": {"fitness": {"data": "training", "batch_size": 30}},
    "sgd_only": {"method": "sgd-only"},
    "population": {"method": "population"},
    "single": {
        "method": "single",
        "single": {"learning_rate": 0.5, "hyperparameters": {"dropout": 0.2}},
    },
}


@pytest.mark.parallel(2, 3, 4)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_number_of_groups_does_not_change_a_bit(variant: str) -> None:
    settings = recipe(**VARIANTS[variant])
    result = esgd_hpc.run(settings, WORLD, task=Blobs())
    assert digest(result, WORLD) == alone(Blobs(), settings)
    mine = {u for u, g in result.population.owner.items() if g == WORLD.rank}
    assert set(result.population.weights) == mine
    # Nobody owns more than a fair share.
    assert len(mine) <= -(-settings.num_parents // WORLD.size)


@pytest.mark.parallel(4)
def test_neither_moves_nor_parents_that_come_twice_change_a_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = recipe(
        population={"parents": 9, "offspring": 18}, evolution={"parents_per_child": 3}
    )
    expected = alone(Blobs(), settings)
    # Steps this short tell nothing, so say what they last: from 0.001 to 0.3 s.
    monkeypatch.setattr(placement.Costs, "seconds", lambda _, draw: draw.learning_rate)
    monkeypatch.setattr(plan, "LOANS", 1)
    moved: list[Transfer] = []
    move = making.Maker.move

    def watched(maker: Any, transfers: list[Transfer], weights: Any) -> None:
        moved.extend(transfers)
        move(maker, transfers, weights)

    monkeypatch.setattr(making.Maker, "move", watched)
    assert digest(esgd_hpc.run(settings, WORLD, task=Blobs()), WORLD) == expected
    assert any(transfer.uid < settings.num_parents for transfer in moved)


@pytest.mark.parallel(4)
def test_groups_of_two_ranks_give_the_same_bits_however_many_there_are() -> None:
    settings = recipe(topology={"ranks_per_group": 2, "gradient_averaging": "mpi"})
    two_groups = digest(esgd_hpc.run(settings, WORLD, task=Blobs()), WORLD)
    # Two worlds at once: each half of the ranks does the whole run as one group.
    half = WORLD.Split(WORLD.rank // 2)
    assert digest(esgd_hpc.run(settings, half, task=Blobs()), half) == two_groups
    half.Free()


@pytest.mark.parallel(1)
@pytest.mark.parametrize("variant", VARIANTS)
def test_best_and_elite_never_get_worse(variant: str) -> None:
    result = esgd_hpc.run(recipe(**VARIANTS[variant], generations=5), WORLD, task=Blobs())
    rows = result.history
    expected = 6 + bool(VARIANTS[variant].get("fine_tuning"))
    assert [row.generation for row in rows] == list(range(expected))
    if variant != "back_off_sometimes":
        assert all(row.theorem_1_holds for row in rows)
        for before, after in pairwise(rows):
            assert after.best <= before.best
            assert after.elite_average <= before.elite_average
    assert rows[-1].best < 0.9 * rows[0].best
    assert rows[-1].best == result.best.fitness == result.population.best().fitness


@pytest.mark.parallel(1)
def test_a_draw_covers_what_the_task_declares() -> None:
    task = Blobs()
    esgd_hpc.run(recipe(), WORLD, task=task)
    del task.configured[:2]  # the trial of both ends of the ranges before the run
    assert len(task.configured) == 3 * 5
    assert all(0.0 <= float(c["dropout"]) <= 0.5 for c in task.configured)
    assert {c["kind"] for c in task.configured} == {"a", "b"}
    assert all("batch_size" not in c for c in task.configured)
    assert len({c["dropout"] for c in task.configured}) == 15

    narrowed: dict[str, Drawn] = {"dropout": [0.2, 0.2]}  # type: ignore[dict-item]
    optimizers = [{"name": "adam", "learning_rate": 0.01}]
    task = Blobs()
    esgd_hpc.run(
        recipe(sgd={"hyperparameters": narrowed, "optimizers": optimizers}), WORLD, task=task
    )
    assert {c["dropout"] for c in task.configured} == {0.2}


@pytest.mark.parallel(1)
def test_the_single_baseline_halves_its_learning_rate_when_the_loss_rises() -> None:
    settings = recipe(method="single", single={"learning_rate": 8.0}, generations=4)
    result = esgd_hpc.run(settings, WORLD, task=Blobs())
    (individual,) = result.population.individuals
    assert individual.back_offs > 0
    assert individual.draw is not None
    assert individual.draw.learning_rate == 8.0 * 0.5**individual.back_offs
    assert individual.epochs == 8


@pytest.mark.parallel(1)
def test_the_population_baseline_keeps_its_optimizers() -> None:
    pool = [{"name": "sgd", "learning_rate": [0.01, 0.3], "learning_rate_decay": 0.5}]
    draws = []
    for generations in (1, 3):
        settings = recipe(
            method="population", generations=generations, sgd={"optimizers": pool, "epochs": 1}
        )
        result = esgd_hpc.run(settings, WORLD, task=Blobs())
        draws.append([i.draw for i in result.population.individuals])
        assert [i.uid for i in result.population.individuals] == [0, 1, 2, 3, 4]
    for first, third in zip(*draws, strict=True):
        assert first is not None
        assert third is not None
        assert third.learning_rate == pytest.approx(first.learning_rate / 4)
        assert third.hyperparameters == first.hyperparameters


class Troubled(Blobs):
    """From the n-th training batch on, fails on one rank of the group, or gives NaN on all."""

    def __init__(self, how: str, first: int, last: int) -> None:
        super().__init__()
        self.how, self.first, self.last = how, first, last
        self.calls = 0

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if model.training:
            self.calls += 1
        loss = super().loss(model, batch)
        if model.training and self.first <= self.calls < self.last:
            if self.how == "nan":
                return loss * math.nan
            if WORLD.rank == 0:
                raise RuntimeError("out of luck")
        return loss


@pytest.mark.parallel(1, 2)
@pytest.mark.parametrize("how", ["nan", "raise"])
def test_one_bad_individual_is_recorded_and_the_run_goes_on(how: str) -> None:
    settings = recipe(
        topology={"ranks_per_group": WORLD.size}, sgd={"epochs": 1}, evolution={"steps": 1}
    )
    result = esgd_hpc.run(settings, WORLD, task=Troubled(how, 9, 10))
    rows = result.history
    assert all(row.theorem_1_holds for row in rows)
    assert all(math.isfinite(i.fitness) for i in result.population.individuals)
    settings = recipe(topology={"ranks_per_group": WORLD.size}, method="sgd-only", generations=1)
    result = esgd_hpc.run(settings, WORLD, task=Troubled(how, 1, 2))
    failed = [i for i in result.population.individuals if i.failure]
    assert [i.uid for i in failed] == [0]
    assert ("not finite" if how == "nan" else "out of luck") in failed[0].failure
    assert failed[0].back_offs >= 1


class BadFromBirth(Blobs):
    """Networks whose first weight is above a bound cannot be scored."""

    def score(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        scores = dict(super().score(model, batch))
        first = next(model.parameters()).flatten()[0]
        if len(batch[0]) > 1 and first > self.bound:  # one sample: the look at the start
            raise RuntimeError("cannot score this one")
        return scores

    bound = 0.0


@pytest.mark.parallel(1, 2)
def test_individuals_that_cannot_be_scored_are_replaced() -> None:
    settings = recipe(
        population={"parents": 8, "initialization": "random"},
        topology={"ranks_per_group": WORLD.size},
    )
    task = BadFromBirth()
    result = esgd_hpc.run(settings, WORLD, task=task)
    assert math.isinf(result.history[0].worst)
    assert math.isfinite(result.history[0].best)
    assert math.isfinite(result.history[-1].worst)
    task.bound = -math.inf
    with pytest.raises(esgd_hpc.RunError, match=r"every individual failed.*cannot score this one"):
        esgd_hpc.run(settings, WORLD, task=task)


@pytest.mark.parallel(1, 2)
def test_an_anchor_is_never_trained_and_the_best_is_never_worse(tmp_path: Path) -> None:
    folder = Path(WORLD.bcast(str(tmp_path)))
    trained = esgd_hpc.run(recipe(generations=6), WORLD, task=Blobs())
    path = folder / "anchor.safetensors"
    if WORLD.rank == 0:
        from safetensors.torch import save_model

        save_model(trained.best_model(), str(path))
    WORLD.Barrier()
    settings = recipe(
        population={"initialization": "random"},
        anchor={"weights": str(path)},
        sgd={"backoff_probability": 0.0},
        generations=4,
    )
    result = esgd_hpc.run(settings, WORLD, task=Blobs())
    anchor_fitness = trained.best.fitness
    for row in result.history[1:]:
        assert row.best <= anchor_fitness
    uids = {i.uid for i in result.population.individuals} | {
        p for i in result.population.individuals for p in i.parents
    }
    assert 5 in uids  # the anchor's own, as a parent
    assert digest(result, WORLD) == alone(Blobs(), settings)


class StopAfter(Silent):
    """Asks rank 0 to stop once it has shown a generation."""

    def __init__(self, generation: int) -> None:
        self._last, self._newest = generation, -1

    def generation(self, *shown: Any) -> None:
        self._newest = shown[-1][-1].generation

    def asked(self) -> bool:
        return self._newest >= self._last and WORLD.rank == 0


@pytest.mark.parallel(1, 2, 3)
def test_a_resumed_run_ends_like_one_that_was_never_stopped(tmp_path: Path) -> None:
    folder = Path(WORLD.bcast(str(tmp_path)))
    settings = recipe(fine_tuning={"epochs": 1}, evolution={"steps": 2})
    whole = esgd_hpc.run(settings, WORLD, task=Blobs())
    for name, groups_again in (("all", WORLD), ("alone", MPI.COMM_SELF)):
        place = folder / name
        stop = StopAfter(2)
        first = esgd_hpc.run(
            settings, WORLD, task=Blobs(), output=place, progress=stop, should_stop=stop.asked
        )
        assert not first.finished
        assert first.population.generation == 2
        if groups_again is MPI.COMM_SELF and WORLD.rank > 0:
            continue  # only one of the ranks goes on, on its own
        second = esgd_hpc.run(settings, groups_again, task=Blobs(), output=place)
        assert second.finished
        assert second.population.individuals is not whole.population.individuals
        if groups_again is WORLD:
            assert digest(second, WORLD) == digest(whole, WORLD)
        else:
            assert digest(second, groups_again) == alone(Blobs(), settings)
        untimed = [(r.generation, r.best.hex(), r.elite_average.hex()) for r in second.history]
        assert untimed == [
            (r.generation, r.best.hex(), r.elite_average.hex()) for r in whole.history
        ]
    WORLD.Barrier()


WORSE: dict[str, Any] = {
    "method": "sgd-only",
    "generations": 4,
    "sgd": {"backoff_probability": 0.0, "epochs": 3},
}
"""Nothing is backed off, and learning rates are high: the best is soon lost by training on."""


@pytest.mark.parallel(1, 2, 3)
def test_the_best_ever_is_kept_though_training_leaves_it(tmp_path: Path) -> None:
    folder = Path(WORLD.bcast(str(tmp_path)))
    pool = [{"name": "sgd", "learning_rate": [0.5, 4.0], "momentum": 0.9}]
    settings = recipe(**{**WORSE, "sgd": {**WORSE["sgd"], "optimizers": pool}})
    task = Blobs()
    whole = esgd_hpc.run(settings, WORLD, task=task, output=folder / "run")
    champion = whole.population.champion
    assert champion is not None, "the case is there"
    assert whole.best is champion
    assert champion.fitness < min(i.fitness for i in whole.population.individuals)
    for before, after in pairwise(whole.history):
        assert after.best_ever <= before.best_ever
        assert after.best_ever <= after.best
    assert any(after.best > before.best for before, after in pairwise(whole.history))
    assert whole.history[-1].best_ever == champion.fitness
    # Its weights are its own, in memory and on disk.
    with torch.no_grad():
        loss = nn.functional.cross_entropy(
            whole.best_model()(task.validation[0]), task.validation[1]
        )
    assert float(loss) == pytest.approx(champion.fitness, rel=1e-6)
    checkpoint = open_checkpoint(folder / "run")
    assert repr(checkpoint.champion) == repr(champion)
    assert checkpoint.best_weights().tobytes() == whole.best_weights.tobytes()
    assert verify_checkpoint(checkpoint.path) == []
    # The same for one group, and for a run that was stopped in between.
    assert digest(whole, WORLD) == alone(Blobs(), settings)
    stopped, stop = folder / "stopped", StopAfter(2)
    esgd_hpc.run(
        settings, WORLD, task=Blobs(), output=stopped, progress=stop, should_stop=stop.asked
    )
    again = esgd_hpc.run(settings, WORLD, task=Blobs(), output=stopped)
    assert digest(again, WORLD) == digest(whole, WORLD)
    assert again.history[-1].best_ever == champion.fitness


@pytest.mark.parallel(1, 2)
def test_a_recipe_changed_on_purpose_is_recorded_and_fitness_keeps_its_meaning(
    tmp_path: Path,
) -> None:
    folder = Path(WORLD.bcast(str(tmp_path)))
    esgd_hpc.run(recipe(generations=2), WORLD, task=Blobs(), output=folder)
    changes: dict[str, Any] = {
        "generations": 4,
        "sgd": {"epochs": 1},
        "fitness": {"data": "training"},
    }
    with pytest.raises(esgd_hpc.InputError, match=r"fitness.data: .*--set fitness.data="):
        esgd_hpc.run(
            recipe(**changes), WORLD, task=Blobs(), output=folder, changing=["sgd", "generations"]
        )
    names = ["generations", "sgd.epochs", "fitness"]
    task = Blobs()
    result = esgd_hpc.run(recipe(**changes), WORLD, task=task, output=folder, changing=names)
    assert result.population.generation == 4
    # All were scored again: the best has its fitness on the training data.
    model = result.best_model()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(task.training[0]), task.training[1])
    assert float(loss) == pytest.approx(result.best.fitness, rel=1e-6)
    found = open_checkpoint(folder).history.changes
    assert {(c.generation, c.key, c.old, c.new) for c in found} == {
        (2, "generations", "2", "4"),
        (2, "sgd.epochs", "2", "1"),
        (2, "fitness.data", '"validation"', '"training"'),
    }
    # The changed recipe is the run's from here on: it needs no naming, and records nothing more.
    done = esgd_hpc.run(recipe(**changes), WORLD, task=Blobs(), output=folder)
    assert done.population.generation == 4
    with pytest.raises(esgd_hpc.InputError, match=r"5 individuals and cannot go on with 6"):
        esgd_hpc.run(
            recipe(**{**changes, "generations": 5}, population={"parents": 6}),
            WORLD,
            task=Blobs(),
            output=folder,
            changing=["population.parents", "generations"],
        )


@pytest.mark.parallel(1, 2)
def test_a_champion_goes_when_back_off_is_always_applied_from_then_on(tmp_path: Path) -> None:
    folder = Path(WORLD.bcast(str(tmp_path)))
    pool = [{"name": "sgd", "learning_rate": [0.5, 4.0], "momentum": 0.9}]
    settings = {**WORSE, "sgd": {**WORSE["sgd"], "optimizers": pool}}
    first = esgd_hpc.run(recipe(**settings), WORLD, task=Blobs(), output=folder)
    assert first.population.champion is not None
    gentle = [{"name": "adam", "learning_rate": [0.01, 0.5]}]
    settings["sgd"] = {"backoff_probability": 1.0, "epochs": 10, "optimizers": gentle}
    result = esgd_hpc.run(
        recipe(**{**settings, "generations": 12}),
        WORLD,
        task=Blobs(),
        output=folder,
        changing=["sgd", "generations"],
    )
    best = min(i.fitness for i in result.population.individuals)
    assert best < first.population.champion.fitness
    assert result.population.champion is None
    assert result.best.fitness == result.history[-1].best_ever == best


class CannotScoreTraining(Blobs):
    """Scores validation data, and training data of every individual but one."""

    def score(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        weight = next(model.parameters())
        if len(batch[0]) > 50 and float(weight.flatten()[0].detach()) == self.bad:
            raise RuntimeError("cannot score this one")
        return dict(super().score(model, batch))

    bad = math.nan


@pytest.mark.parallel(1, 2)
def test_who_cannot_be_scored_again_keeps_no_fitness_of_another_meaning(tmp_path: Path) -> None:
    folder = Path(WORLD.bcast(str(tmp_path)))
    start = recipe(generations=1, method="sgd-only")
    first = esgd_hpc.run(start, WORLD, task=Blobs(), output=folder)
    task = CannotScoreTraining()
    task.bad = float(first.best_weights[0])
    changed = recipe(generations=2, fitness={"data": "training"}, method="sgd-only")
    result = esgd_hpc.run(
        changed,
        WORLD,
        task=task,
        output=folder,
        changing=["generations", "fitness"],
    )
    steps = {s.uid: s for s in open_checkpoint(folder).history.steps if s.generation == 2}
    assert math.isinf(steps[first.best.uid].fitness_before)
    assert all(math.isfinite(s.fitness_before) for u, s in steps.items() if u != first.best.uid)
    assert math.isfinite(result.best.fitness)


@pytest.mark.parallel(1, 2)
def test_something_else_called_latest_is_refused_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    folder = Path(WORLD.bcast(str(tmp_path)))
    if WORLD.rank == 0:
        (folder / "latest").mkdir()
    WORLD.Barrier()
    with pytest.raises(esgd_hpc.InputError, match=r"latest is no link of ours; rename or remove"):
        esgd_hpc.run(recipe(), WORLD, task=Blobs(), output=folder)


@pytest.mark.parallel(1, 2)
def test_a_run_of_which_nothing_can_be_read_is_not_begun_anew(tmp_path: Path) -> None:
    folder = Path(WORLD.bcast(str(tmp_path)))
    esgd_hpc.run(recipe(generations=1), WORLD, task=Blobs(), output=folder)
    if WORLD.rank == 0:
        for path in folder.glob("gen_*/COMMIT.json"):
            path.write_text('{"format": 99}')
    WORLD.Barrier()
    with pytest.raises(esgd_hpc.InputError, match=r"none of its generations can be read \(gen_0"):
        esgd_hpc.run(recipe(generations=1), WORLD, task=Blobs(), output=folder)


class Notes(Silent):
    """Remembers what rank 0 would show."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parallel(2, 4)
def test_other_ranks_per_group_go_on_with_a_notice(tmp_path: Path) -> None:
    folder = Path(WORLD.bcast(str(tmp_path)))
    stop = StopAfter(1)
    first = esgd_hpc.run(
        recipe(generations=3),
        WORLD,
        task=Blobs(),
        output=folder,
        progress=stop,
        should_stop=stop.asked,
    )
    assert first.population.generation == 1
    pairs = recipe(generations=3, topology={"ranks_per_group": 2, "gradient_averaging": "mpi"})
    notes = Notes()
    result = esgd_hpc.run(pairs, WORLD, task=Blobs(), output=folder, progress=notes)
    assert "going on with 2 ranks per group instead of 1: last bits may differ" in notes.notes
    assert result.population.generation == 3
    assert all(row.theorem_1_holds for row in result.history)
    assert open_checkpoint(folder).ranks_per_group == 2
    assert open_checkpoint(folder).history.changes == []


@pytest.mark.parallel(1, 2)
def test_the_history_tells_where_everybody_came_from(tmp_path: Path) -> None:
    folder = Path(WORLD.bcast(str(tmp_path)))
    settings = recipe(evolution={"steps": 2}, generations=3)
    result = esgd_hpc.run(settings, WORLD, task=Blobs(), output=folder)
    history = open_checkpoint(folder).history
    births = {birth.uid: birth for birth in history.births}
    assert [row.generation for row in history.rows] == [0, 1, 2, 3]
    for individual in result.population.individuals:
        birth = births[individual.uid]
        assert (birth.born, birth.parents) == (individual.born, individual.parents)
        assert birth.noise_seed == individual.noise_seed
        steps = [s for s in history.steps if s.uid == individual.uid]
        assert sum(s.epochs for s in steps) == individual.epochs
        assert sum(s.back_offs for s in steps) == individual.back_offs
        assert (steps[-1].draw if steps else None) == individual.draw
    for birth in history.births:  # parents were selected themselves, earlier or in this generation
        assert all(births[parent].born <= birth.born for parent in birth.parents)
    for k, (members, children) in enumerate(zip(history.survivors, history.offspring, strict=True)):
        assert [m.uid for m in members] == sorted(m.uid for m in members)
        assert min(m.fitness for m in members) == history.rows[k].best
        assert len(children) == (2 * 7 if k else 0)
        assert {c.uid for c in children if c.selected} <= births.keys()
    trained = [(s.generation, s.uid) for s in history.steps]
    assert len(trained) == len(set(trained)) == 3 * 5


@pytest.mark.parallel(1, 2)
def test_the_best_model_has_the_recorded_fitness_in_plain_torch() -> None:
    task = Blobs()
    result = esgd_hpc.run(recipe(), WORLD, task=task)
    model = result.best_model()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(model(task.validation[0]), task.validation[1])
    assert float(loss) == pytest.approx(result.best.fitness, rel=1e-6)
    assert np.isfinite(result.best_weights).all()


@pytest.mark.gpu
@pytest.mark.parallel(1, 2)
@pytest.mark.parametrize("variant", ["plain", "recalibrated", "fine_tuning"])
def test_a_run_on_gpus_keeps_its_promises(variant: str) -> None:
    changes = {**VARIANTS[variant], "topology": {"device": "cuda", "gradient_averaging": "mpi"}}
    result = esgd_hpc.run(recipe(**changes), WORLD, task=Blobs())
    assert all(row.theorem_1_holds for row in result.history)
    assert result.history[-1].best < 0.9 * result.history[0].best
    # The same GPUs in groups of another number give the same bits.
    assert digest(result, WORLD) == alone(Blobs(), recipe(**changes))


class Noisy(Blobs):
    """Draws random numbers wherever a task may: model, loss and score."""

    def model(self) -> nn.Module:
        model = super().model()
        with torch.no_grad():
            model[0].bias.copy_(torch.from_numpy(np.random.standard_normal(8)))  # type: ignore[index]
        return model

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs, targets = batch
        return super().loss(model, (inputs + 0.1 * torch.randn_like(inputs), targets))

    def score(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        inputs, targets = batch
        noise = torch.from_numpy(np.random.standard_normal(inputs.shape)).float()
        return dict(super().score(model, (inputs + 0.1 * noise, targets)))


@pytest.mark.parallel(2, 3)
@pytest.mark.parametrize("batchnorm", ["average", "recalibrate"])
def test_random_tasks_give_the_same_bits_for_any_number_of_groups(batchnorm: str) -> None:
    settings = recipe(evolution={"batchnorm": batchnorm}, population={"initialization": "random"})
    result = esgd_hpc.run(settings, WORLD, task=Noisy())
    assert digest(result, WORLD) == alone(Noisy(), settings)


class FailingConfigure(Blobs):
    """Runs out of memory on the last rank while it prepares the third individual."""

    def configure(self, model: nn.Module, hyperparameters: Any) -> None:
        super().configure(model, hyperparameters)
        if len(self.configured) == 5 and WORLD.rank == WORLD.size - 1:
            raise MemoryError("no room")


@pytest.mark.parallel(1, 2)
def test_a_rank_that_cannot_prepare_an_individual_fails_it_for_its_group() -> None:
    settings = recipe(topology={"ranks_per_group": WORLD.size}, method="sgd-only", generations=1)
    result = esgd_hpc.run(settings, WORLD, task=FailingConfigure())
    assert [i.uid for i in result.population.individuals if i.failure] == [2]
    assert "no room" in result.population.individuals[2].failure


@pytest.mark.parallel(1)
def test_a_generation_of_nothing_but_nan_is_backed_off_and_the_run_goes_on() -> None:
    settings = recipe(method="sgd-only", generations=3, sgd={"epochs": 1})
    result = esgd_hpc.run(settings, WORLD, task=Troubled("nan", 1, 5 * 7))
    assert all(i.back_offs >= 1 for i in result.population.individuals)
    assert result.history[-1].best < result.history[0].best


class ChangingScore(Blobs):
    """A hyper-parameter that acts in evaluation as well."""

    def configure(self, model: nn.Module, hyperparameters: Any) -> None:
        self.factor = 1.0 + hyperparameters["dropout"]

    def score(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        scores = dict(super().score(model, batch))
        scores["loss"] *= getattr(self, "factor", 1.0)
        return scores


@pytest.mark.parallel(1, 2)
def test_a_hyperparameter_that_changes_what_fitness_means_is_refused() -> None:
    with pytest.raises(esgd_hpc.InputError, match=r"configure\(\) with .* changes the loss"):
        esgd_hpc.run(recipe(), WORLD, task=ChangingScore())


@pytest.mark.parallel(2, 3)
def test_ranks_that_differ_in_their_data_are_refused() -> None:
    task = Blobs()
    if WORLD.rank == 1:
        inputs, targets = task.validation  # type: ignore[misc]
        task.validation = (inputs + 1.0, targets)
    with pytest.raises(esgd_hpc.InputError, match=r"differs from rank to rank.*rank 1 has"):
        esgd_hpc.run(recipe(), WORLD, task=task)
