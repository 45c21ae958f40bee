"""Data of prepared files: once a node, the same for all, gone after the run, or refused by all."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn

import esgd_hpc
from esgd_hpc.api import plan
from esgd_hpc.data.store import Store, Stored, open_store, read, writing
from esgd_hpc.errors import InputError, RunError
from esgd_hpc.parallel.node_memory import NodeMemory
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.tasks.base import Batch, ClassificationTask

WORLD = MPI.COMM_WORLD


class Lookup(ClassificationTask):
    """Samples are places in a table that all share."""

    def __init__(self, store: Store) -> None:
        super().__init__(
            training=(store["train/places"], store["train/classes"]),
            validation=(store["validation/places"], store["validation/classes"]),
            test=(store["validation/places"], store["validation/classes"]),
        )
        self.shared = {"table": store["table"]}

    def model(self) -> nn.Module:
        return nn.Linear(4, 3)

    def _found(self, batch: Batch) -> tuple[Tensor, Tensor]:
        places, classes = batch
        table = self.shared["table"]
        assert isinstance(table, Tensor)
        return table[places], classes

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().loss(model, self._found(batch))

    def score(self, model: nn.Module, batch: Batch) -> Any:
        return super().score(model, self._found(batch))


def store_at(folder: Path) -> Store:
    """Return a prepared file with a random table and its classes, made by rank 0."""
    file = folder / "lookup.h5"
    if WORLD.rank == 0:
        stream = np.random.default_rng(1)
        table = stream.standard_normal((60, 4), dtype=np.float32)
        classes = table[:, :3].argmax(axis=1)
        with writing(file, "lookup") as writer:
            writer.append("table", table)
            for split, places in (("train", range(40)), ("validation", range(40, 60))):
                writer.append(f"{split}/places", np.array(places))
                writer.append(f"{split}/classes", classes[list(places)])
    WORLD.Barrier()
    store = open_store("lookup", WORLD.bcast(str(file)))
    WORLD.Barrier()  # before a test changes the file
    return store


RECIPE = esgd_hpc.recipe_from(
    {
        "task": "lookup",
        "generations": 2,
        "population": {"parents": 3, "offspring": 4, "initialization": "perturb"},
        "sgd": {"batch_size": 8, "optimizers": [{"name": "adam", "learning_rate": 0.05}]},
        "topology": {"gradient_averaging": "mpi"},
    }
)


@pytest.mark.parallel(1, 2, 3)
def test_a_node_reads_data_once(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    topology = Topology(WORLD, 1)
    memory = NodeMemory(topology.node)
    table = memory.read(store["table"])
    assert table.shape == (60, 4)
    # What one rank writes, though it should not, the others see.
    WORLD.Barrier()
    if WORLD.rank == 0:
        table[5, 1] = 123.0
    WORLD.Barrier()
    assert table[5, 1] == 123.0
    WORLD.Barrier()
    del table
    memory.close()
    topology.close()


@pytest.mark.parallel(2)
def test_without_room_in_shared_memory_each_rank_has_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = store_at(tmp_path)
    monkeypatch.setattr("esgd_hpc.parallel.node_memory._SPARE", 1.0)
    memory = NodeMemory(WORLD)
    table = memory.read(store["table"])
    table[0, 0] = WORLD.rank
    WORLD.Barrier()
    assert table[0, 0] == WORLD.rank
    told = WORLD.allgather(caplog.text)
    assert "Mount more shared memory" in told[0]
    assert not told[1]
    memory.close()


@pytest.mark.parallel(1, 2, 4)
def test_a_run_reads_prepared_data_and_scores_test_data_once(tmp_path: Path) -> None:
    task = Lookup(store_at(tmp_path))
    result = esgd_hpc.run(RECIPE, WORLD, task=task)
    assert isinstance(task.training[0], Stored)  # the memory is gone, and nothing refers to it
    for individual in result.population.individuals:
        # Here the test data is the validation data.
        assert individual.metrics["test_loss"] == individual.fitness
        assert individual.metrics["test_error_rate"] == individual.metrics["error_rate"]
    bits = [(i.uid, i.fitness.hex()) for i in result.population.individuals]
    assert len(set(WORLD.allgather(str(bits)))) == 1
    alone = esgd_hpc.run(RECIPE, MPI.COMM_SELF, task=Lookup(store_at(tmp_path)))
    assert [(i.uid, i.fitness.hex()) for i in alone.population.individuals] == bits


@pytest.mark.parallel(2)
def test_ranks_of_a_group_score_test_data_together(tmp_path: Path) -> None:
    recipe = esgd_hpc.recipe_from(
        {
            "task": "lookup",
            "generations": 1,
            "method": "sgd-only",
            "population": {"parents": 2},
            "sgd": {"optimizers": [{"name": "adam", "learning_rate": 0.05}]},
            "fitness": {"batch_size": 7},
            "topology": {"ranks_per_group": 2, "gradient_averaging": "mpi"},
        }
    )
    result = esgd_hpc.run(recipe, WORLD, task=Lookup(store_at(tmp_path)))
    for individual in result.population.individuals:
        assert individual.metrics["test_loss"] == individual.fitness


@pytest.mark.parallel(1, 2)
@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_data_that_cannot_be_had_is_refused_by_all_ranks(tmp_path: Path, how: str) -> None:
    store = store_at(tmp_path)
    if WORLD.rank == 0 and how == "missing":
        store.file.unlink()
    elif WORLD.rank == 0:
        with h5py.File(store.file, "r+") as opened:
            opened["train/classes"][3] = 2 - opened["train/classes"][3]
            opened["train/classes"].attrs["crc32"] = 5
    WORLD.Barrier()
    store = open_store("lookup", str(store.file))
    wanted = "no such file; prepare the data" if how == "missing" else "train/classes is damaged"
    with pytest.raises(InputError, match=wanted):
        esgd_hpc.run(RECIPE, WORLD, task=Lookup(store))


@pytest.mark.parallel(2, 3)
@pytest.mark.parametrize("how", ["missing", "other", "planned"])
def test_a_rank_that_sees_other_data_than_the_rest_leaves_nobody_waiting(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files on disks of single nodes, or prepared again while a run starts."""
    store = store_at(tmp_path)
    if WORLD.rank == WORLD.size - 1:
        place = tmp_path / f"of-rank-{WORLD.rank}"
        if how == "other":
            with writing(place / "lookup.h5", "lookup") as writer:
                for name, stored in store.datasets.items():
                    writer.append(name, read(stored)[:-1])
        store = open_store("lookup", str(place))
    if how == "planned":
        monkeypatch.setattr("esgd_hpc.tasks.needs.load_task", lambda *_: Lookup(store))
        text = plan(RECIPE, WORLD, output=tmp_path / "run")
        assert "missing: " in text
        assert len(set(WORLD.allgather(text))) == 1
        return
    wanted = "no such file" if how == "missing" else "prepared data differs from rank to rank"
    with pytest.raises(InputError, match=wanted):
        esgd_hpc.run(RECIPE, WORLD, task=Lookup(store))


@pytest.mark.parallel(2, 3)
@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_cannot_read_a_copy_of_its_own_leaves_nobody_waiting(
    tmp_path: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing_read(stored: Stored) -> Any:
        if WORLD.rank == failing:
            raise MemoryError("no memory for a copy")
        return read(stored)

    monkeypatch.setattr("esgd_hpc.parallel.node_memory._SPARE", 1.0)
    monkeypatch.setattr("esgd_hpc.parallel.node_memory.read", failing_read)
    with pytest.raises(RunError, match="no memory for a copy"):
        esgd_hpc.run(RECIPE, WORLD, task=Lookup(store_at(tmp_path)))


class WholeSet(Lookup):
    """Has a metric that no mean over batches gives, and fails for one individual."""

    calls = 0

    def final_scores(self, model: nn.Module) -> dict[str, float]:
        self.calls += 1
        assert not torch.is_grad_enabled()
        assert not model.training
        if self.calls == 2:
            raise ValueError("cannot decode")
        return {"phone_error_rate": 0.25, "test_phone_error_rate": 0.5}


@pytest.mark.parallel(1)
def test_metrics_of_whole_sets_are_added_and_their_failure_costs_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = esgd_hpc.run(RECIPE, WORLD, task=WholeSet(store_at(tmp_path)))
    found = [i.metrics.get("test_phone_error_rate") for i in result.population.individuals]
    assert found == [0.5, None, 0.5]
    assert "cannot decode" in caplog.text
