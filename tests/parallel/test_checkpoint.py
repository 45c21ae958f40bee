"""Any number of groups writes the same checkpoint, and an error on one rank is one on all."""

import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mpi4py import MPI

from esgd_hpc.checkpoint import files
from esgd_hpc.checkpoint.reader import open_checkpoint, population_digest
from esgd_hpc.checkpoint.verify import newest_valid, verify_checkpoint
from esgd_hpc.errors import RunError
from esgd_hpc.history import History
from esgd_hpc.layout import Layout
from esgd_hpc.parallel.topology import Topology
from unit.test_checkpoint import (
    expected_digest,
    make_history,
    make_layout,
    make_population,
    make_weights,
    names,
    write_checkpoint,
)

WORLD = MPI.COMM_WORLD


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return one folder for all ranks."""
    path = Path(WORLD.bcast(tempfile.mkdtemp() if WORLD.rank == 0 else None))
    yield path
    WORLD.Barrier()
    if WORLD.rank == 0:
        shutil.rmtree(path)


def write(
    folder: Path, generation: int, num_parents: int, layout: Layout, ranks_per_group: int = 1
) -> None:
    topology = Topology(WORLD, ranks_per_group)
    population = make_population(
        num_parents, layout, generation, topology.num_groups, topology.group_number
    )
    if not topology.is_leader:
        population.weights.clear()
    try:
        write_checkpoint(
            folder,
            population,
            layout,
            make_history(generation + 1),
            topology,
        )
    finally:
        topology.close()
    WORLD.Barrier()


@pytest.mark.parallel(1, 2, 3)
@pytest.mark.parametrize("num_parents", [1, 2, 5, 7])
def test_groups_do_not_show(folder: Path, num_parents: int) -> None:
    """Also where a group owns fewer individuals than another, or none."""
    layout = make_layout()
    write(folder, 1, num_parents, layout)
    assert verify_checkpoint(folder / "gen_000001") == []
    checkpoint = open_checkpoint(folder)
    population = make_population(num_parents, layout, groups=WORLD.size)
    assert repr(checkpoint.individuals) == repr(population.individuals)
    assert checkpoint.owner == population.owner
    assert (checkpoint.ranks, checkpoint.groups) == (WORLD.size, WORLD.size)
    assert population_digest(checkpoint) == expected_digest(population, layout)
    # The weights of any rank's individuals, for a run with other groups.
    for uid, vector in checkpoint.read_weights(population.owner).items():
        assert vector.tobytes() == make_weights(uid, layout).tobytes()
    leaders = [files.leader_name(group) for group in range(WORLD.size)]
    assert names(checkpoint.path) == ["COMMIT.json", *leaders, "population.h5"]


@pytest.mark.parallel(2, 4)
def test_only_leaders_write(folder: Path) -> None:
    layout = make_layout()
    write(folder, 1, 5, layout, ranks_per_group=2)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.groups == WORLD.size // 2
    assert checkpoint.ranks_per_group == 2
    assert len(checkpoint.commit.files) == checkpoint.groups + 1
    population = make_population(5, layout)
    assert population_digest(checkpoint) == expected_digest(population, layout)


@pytest.mark.parallel(1, 2, 3)
def test_full_disk_on_the_last_rank(folder: Path) -> None:
    write(folder, 1, 5, make_layout())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if WORLD.rank == WORLD.size - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(RunError, match="cannot be written: File too large") as caught:
            write(folder, 2, 5, make_layout(hidden=400_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert set(WORLD.allgather(str(caught.value))) == {str(caught.value)}
    assert files.leader_name(WORLD.size - 1) in str(caught.value)
    assert names(folder) == ["gen_000001", "history.h5", "latest"]
    assert newest_valid(folder) == (folder / "gen_000001", [])
    write(folder, 2, 5, make_layout())
    assert newest_valid(folder) == (folder / "gen_000002", [])


@pytest.mark.parallel(1, 2, 3)
def test_a_file_in_place_of_the_folder(folder: Path) -> None:
    if WORLD.rank == 0:
        (folder / "run").write_text("mine")
    WORLD.Barrier()
    with pytest.raises(RunError, match="run: cannot be written: File exists"):
        write(folder / "run", 1, 5, make_layout())
    assert (folder / "run").read_text() == "mine"


@pytest.mark.parallel(2, 3)
def test_weights_missing_on_one_leader(folder: Path) -> None:
    """A defect of ours must not become a hang, nor a checkpoint."""
    layout = make_layout()
    topology = Topology(WORLD, 1)
    population = make_population(5, layout, 1, topology.num_groups, topology.group_number)
    if WORLD.rank == 1:
        population.weights.popitem()
    with pytest.raises(RunError, match=r"KeyError: \d+ .*rank 1\)"):
        write_checkpoint(folder, population, layout, History(), topology)
    topology.close()
    assert names(folder) == []
