"""A checkpoint comes back bit for bit or says what is wrong; a failed write costs nothing."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mpi4py import MPI

from esgd_hpc.checkpoint import files
from esgd_hpc.checkpoint.export import (
    read_state_dict,
    state_dict_arrays,
    vector_from,
    write_state_dict,
)
from esgd_hpc.checkpoint.history_file import read_history_file, write_history_file
from esgd_hpc.checkpoint.reader import find_generation, open_checkpoint, population_digest
from esgd_hpc.checkpoint.verify import newest_valid, verify_checkpoint
from esgd_hpc.checkpoint.weights_file import CHUNK_PLACES, open_weights_file, write_weights_file
from esgd_hpc.checkpoint.writer import CheckpointWriter
from esgd_hpc.config import Recipe, recipe_data
from esgd_hpc.errors import InputError, RunError
from esgd_hpc.history import (
    Birth,
    GenerationRow,
    History,
    Member,
    Offspring,
    RecipeChange,
    SgdStep,
)
from esgd_hpc.layout import Entry, Kind, Layout
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import (
    ORIGINS,
    Draw,
    Individual,
    Population,
    Weights,
)
from esgd_hpc.recipe_file import load_recipe

PROVENANCE = {"host": "node-17", "command": "esgd run digits --set seed=2"}


# ---------------------------------------------------------------- what is written


def make_layout(hidden: int = 4) -> Layout:
    """Return parameters, buffers, integer buffers of odd sizes, and a tied name."""
    tensors: list[tuple[str, tuple[int, ...], Kind, str]] = [
        ("encoder.weight", (3, hidden), "parameter", "float32"),
        ("encoder.bias", (hidden,), "parameter", "float32"),
        ("scale", (), "parameter", "float32"),
        ("norm.running_mean", (hidden,), "buffer", "float32"),
        ("norm.num_batches_tracked", (), "integer", "int64"),
        ("mask", (5,), "integer", "bool"),
    ]
    entries = []
    offset = 0
    for name, shape, kind, dtype in tensors:
        size = -(-int(np.prod(shape, dtype=int)) * np.dtype(dtype).itemsize // 4)
        entries.append(
            Entry(name=name, offset=offset, size=size, shape=shape, kind=kind, dtype=dtype)
        )
        offset += size
    return Layout(entries=tuple(entries), aliases={"decoder.weight": "encoder.weight"})


def make_weights(uid: int, layout: Layout) -> Weights:
    """Return a vector of every bit pattern there is, NaNs with payloads included."""
    bits = np.random.default_rng(uid).integers(0, 2**32, layout.size, dtype=np.uint32)
    return bits.view(np.float32)


def make_individual(uid: int) -> Individual:
    """Return a record; some failed, some are children of one or two parents."""
    draw = Draw(
        optimizer="adam" if uid % 2 else "sgd",
        learning_rate=0.1 / (uid + 1),
        hyperparameters={"dropout": 0.25, "layers": 2, "tied": True, "cell": "gru"},
    )
    child = uid % 5 < 2
    return Individual(
        uid=uid,
        fitness=np.inf if uid % 4 == 0 else 1.0 / 3.0 + uid,
        metrics={"error_rate": np.nan if uid % 4 == 0 else uid / 7},
        origin="offspring" if child else "sgd",
        born=uid // 5,
        parents=(uid + 1, uid + 2)[: 1 + uid % 2] if child else (),
        noise_seed=str(2**128 - 1 - uid),
        sigma=0.01,
        draw=None if child else draw,
        epochs=uid,
        back_offs=uid // 2,
        seconds=0.5,
        failure="loss is nan\x00\x1b[31m" if uid % 4 == 0 else "",
    )


def make_population(
    num_parents: int, layout: Layout, generation: int = 1, groups: int = 1, group: int = 0
) -> Population:
    """Return the population as the leader of `group` holds it; uids have gaps."""
    individuals = [make_individual(3 * place + generation) for place in range(num_parents)]
    owner = {i.uid: place % groups for place, i in enumerate(individuals)}
    return Population(
        generation=generation,
        individuals=individuals,
        owner=owner,
        next_uid=3 * num_parents + generation,
        weights={u: make_weights(u, layout) for u, g in owner.items() if g == group},
    )


def make_history(generations: int) -> History:
    """Return a history of individuals that come and go; its first row has no finite worst."""
    history = History(rows=make_rows(generations))
    for k in range(generations):
        members = [make_individual(uid) for uid in range(3 * k, 3 * k + 4 - k % 2)]
        history.survivors.append(
            tuple(
                Member(
                    uid=i.uid,
                    fitness=i.fitness,
                    origin=i.origin,
                    optimizer=i.draw.optimizer if i.draw else "none",
                    learning_rate=i.draw.learning_rate if i.draw else np.nan,
                )
                for i in members
            )
        )
        history.offspring.append(
            tuple(
                Offspring(
                    uid=i.uid,
                    fitness=i.fitness,
                    parents=i.parents,
                    sigma=i.sigma,
                    selected=i.uid % 2 == 0,
                )
                for i in members[: k % 3]
            )
        )
        history.births.append(
            Birth(
                uid=k,
                born=k,
                origin="offspring" if k else "initial",
                parents=tuple(range(k % 3)),
                noise_seed=str(2**128 - 1 - k),
                sigma=0.01 * k,
                fitness=np.inf if k == 1 else 1.0 / (k + 1),
            )
        )
        history.steps += [
            SgdStep(
                generation=k,
                uid=i.uid,
                draw=i.draw,
                epochs=2,
                back_offs=k % 2,
                fitness_before=np.inf,
                fitness=i.fitness,
                seconds=0.25,
                failure=i.failure,
            )
            for i in members
            if k and i.draw
        ]
    history.changes.append(RecipeChange(generation=1, key="sgd.epochs", old="1", new="[1, 2]"))
    return history


def make_rows(generations: int) -> list[GenerationRow]:
    """Return rows whose first has no finite worst."""
    return [
        GenerationRow(
            generation=k,
            best=1.0 / (k + 1),
            best_ever=0.5 / (k + 1),
            elite_average=2.0 / (k + 1),
            lower_quartile=2.5 / (k + 1),
            median=3.0 / (k + 1),
            upper_quartile=3.5 / (k + 1),
            worst=np.inf if k == 0 else 4.0,
            elite_offspring_fraction=0.25,
            best_uid=7 * k,
            best_optimizer="sgd" if k else "none",
            best_learning_rate=0.125 if k else 0.0,
            theorem_1_holds=k != 2,
            diversity=0.5 + k,
            diversity_by_optimizer={"sgd": 0.25} if k else {},
            individuals_by_optimizer={"none": 1, "sgd": k, "adam": 2},
            seconds={"evolution": 0.25, "sgd": 1.5} if k else {},
        )
        for k in range(generations)
    ]


def make_recipe(keep: int = 2) -> Recipe:
    """Return a recipe with drawn values and options in it."""
    options = ["task_options.hidden=8", "sgd.hyperparameters.dropout=[0, 0.5]"]
    return load_recipe("digits", [*options, f"checkpoint.keep={keep}"])


def write_checkpoint(
    folder: Path,
    population: Population,
    layout: Layout,
    history: History,
    topology: Topology,
    keep: int = 2,
    provenance: dict[str, str] = PROVENANCE,
) -> None:
    """Write one checkpoint and wait for it. Collective."""
    newest, _ = newest_valid(folder) if topology.world.rank == 0 else (None, [])
    begun_at = topology.world.bcast(int(newest.name[4:10]) if newest else None)
    writer = CheckpointWriter(folder, layout, make_recipe(keep), topology, provenance, begun_at)
    writer.start(population, history)
    writer.finish()


def write(
    folder: Path,
    generation: int = 1,
    num_parents: int = 5,
    keep: int = 2,
    provenance: dict[str, str] = PROVENANCE,
) -> Path:
    """Write one checkpoint from one rank and return its folder."""
    layout = make_layout()
    topology = Topology(MPI.COMM_SELF, 1)
    try:
        write_checkpoint(
            folder,
            make_population(num_parents, layout, generation),
            layout,
            make_history(generation + 1),
            topology,
            keep,
            provenance,
        )
    finally:
        topology.close()
    return folder / files.generation_name(generation)


def expected_digest(population: Population, layout: Layout) -> str:
    """Return the digest by its definition, from memory."""
    digest = hashlib.sha256()
    for individual in population.individuals:
        digest.update(struct.pack("<q", individual.uid))
        digest.update(struct.pack("<d", individual.fitness))
        digest.update(make_weights(individual.uid, layout).tobytes())
    return digest.hexdigest()


def names(folder: Path) -> list[str]:
    """Return what is in a folder."""
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- round trips


def test_everything_comes_back(tmp_path: Path) -> None:
    layout = make_layout()
    checkpoint = open_checkpoint(write(tmp_path))
    population = make_population(5, layout)
    assert checkpoint.generation == 1
    assert checkpoint.layout == layout
    assert repr(checkpoint.individuals) == repr(population.individuals)  # NaN metrics included
    assert checkpoint.owner == population.owner
    assert checkpoint.next_uid == population.next_uid
    assert checkpoint.recipe == recipe_data(make_recipe())
    assert repr(checkpoint.history) == repr(make_history(2))
    assert (checkpoint.ranks, checkpoint.ranks_per_group, checkpoint.groups) == (1, 1, 1)
    assert checkpoint.provenance == PROVENANCE
    assert checkpoint.best() == population.best()


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    layout = make_layout()
    checkpoint = open_checkpoint(write(tmp_path))
    weights = checkpoint.read_weights([7, 1])
    assert list(weights) == [7, 1]
    for uid, vector in weights.items():
        assert vector.dtype == np.float32
        assert vector.tobytes() == make_weights(uid, layout).tobytes()
    with pytest.raises(InputError, match="no individual 99"):
        checkpoint.read_weights([99])


def test_digest_is_as_defined(tmp_path: Path) -> None:
    layout = make_layout()
    digest = population_digest(open_checkpoint(write(tmp_path)))
    assert digest == expected_digest(make_population(5, layout), layout)


def test_any_place_of_a_run_opens_the_same_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1)
    newest = write(tmp_path, 2)
    for path in (tmp_path, newest, tmp_path / "latest"):
        assert open_checkpoint(path).generation == 2
    assert open_checkpoint(find_generation(tmp_path, 1)).generation == 1
    with pytest.raises(InputError, match=r"no generation 7 in this folder; it has 1, 2"):
        find_generation(tmp_path, 7)
    with pytest.raises(InputError, match="is generation 2"):
        find_generation(newest, 7)
    with pytest.raises(InputError, match="no checkpoint in this folder"):
        find_generation(Path(__file__).parent)


def test_a_command_line_in_any_encoding(tmp_path: Path) -> None:
    write(tmp_path, provenance={"command": "run \udcff.toml", "empty": "", "long": "ä" * 10**5})
    assert open_checkpoint(tmp_path).provenance == {
        "command": "run \\udcff.toml",
        "empty": "",
        "long": "ä" * 10**5,
    }


def test_rows_longer_than_a_chunk(tmp_path: Path) -> None:
    size = 2 * CHUNK_PLACES + 5
    rows = {4: np.arange(size, dtype=np.float32), 9: np.full(size, np.nan, dtype=np.float32)}
    path = tmp_path / "leader_00000.h5"
    assert write_weights_file(path, dict(rows), size) == files.file_sum(path)
    with open_weights_file(path, size) as weights:
        assert [len(piece) for piece in weights.pieces(0)] == [CHUNK_PLACES, CHUNK_PLACES, 5]
        assert np.array_equal(np.concatenate(list(weights.pieces(0))), rows[4])
        assert weights.crcs == [zlib.crc32(row.tobytes()) for row in rows.values()]
    with h5py.File(path) as file:
        assert file["weights"].chunks == (1, CHUNK_PLACES)
        assert file["weights"].compression is None


def test_a_group_without_individuals_has_a_file_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "leader_00000.h5"
    write_weights_file(path, {}, 10)
    with open_weights_file(path, 10) as weights:
        assert weights.uids == []


finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
draws = st.builds(
    Draw,
    optimizer=st.sampled_from(["sgd", "adam"]),
    learning_rate=finite,
    momentum=finite,
    nesterov=st.booleans(),
    weight_decay=finite,
    batch_size=st.integers(1, 2**40),
    hyperparameters=st.dictionaries(texts, finite | st.integers() | texts | st.booleans()),
)
individuals = st.builds(
    Individual,
    uid=st.integers(0, 2**62),
    fitness=st.floats(allow_nan=False),
    metrics=st.dictionaries(texts, st.floats()),
    origin=st.sampled_from(ORIGINS),
    born=st.integers(0, 2**40),
    parents=st.lists(st.integers(0, 2**62), max_size=4).map(tuple),
    noise_seed=st.integers(0, 2**128 - 1).map(str),
    sigma=finite,
    draw=st.none() | draws,
    epochs=st.integers(0, 2**40),
    back_offs=st.integers(0, 2**40),
    seconds=finite,
    failure=texts,
)


@given(st.lists(individuals, min_size=1, max_size=4, unique_by=lambda i: i.uid))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_record_comes_back(tmp_path: Path, members: list[Individual]) -> None:
    members = sorted(members, key=lambda i: i.uid)
    layout = Layout(entries=())
    population = Population(
        generation=0,
        individuals=members,
        owner={i.uid: 0 for i in members},
        next_uid=2**62 + 1,
        weights={i.uid: np.zeros(0, dtype=np.float32) for i in members},
    )
    topology = Topology(MPI.COMM_SELF, 1)
    write_checkpoint(tmp_path, population, layout, History(), topology, keep=1)
    topology.close()
    assert verify_checkpoint(tmp_path / "gen_000000") == []
    assert repr(open_checkpoint(tmp_path).individuals) == repr(members)


# ---------------------------------------------------------------- what viewers see


def test_history_has_scales_and_plots_of_hard_links(tmp_path: Path) -> None:
    path = tmp_path / "history.h5"
    write_history_file(path, make_history(4), "{}", PROVENANCE)
    assert repr(read_history_file(path)) == repr(make_history(4))
    assert names(tmp_path) == ["history.h5"]
    with h5py.File(path) as file:
        assert file["generation"].is_scale
        columns = [name for name in file if isinstance(file[name], h5py.Dataset)]
        assert {"best", "seconds_sgd", "best_uid", "theorem_1_holds"} <= set(columns)
        for name in set(columns) - {"generation", "survivor", "offspring", "parent", "recipe"}:
            assert file[name].dims[0][0] == file["generation"]
            assert file[name].dtype != np.float16
        assert file["theorem_1_holds"].attrs["flag_meanings"] == "false true"
        assert list(file["theorem_1_holds"].attrs["flag_values"]) == [0, 1]
        assert file["worst"][0] == np.inf
        shown = file[file.attrs["default"]]
        shown = shown[shown.attrs["default"]]
        assert shown.name == "/plots/fitness"
        for plot in file["plots"].values():
            assert plot.attrs["NX_class"] == "NXdata"
            auxiliary = list(plot.attrs.get("auxiliary_signals", []))
            for child in [plot.attrs["signal"], *plot.attrs["axes"], *auxiliary]:
                assert isinstance(plot.get(child, getlink=True), h5py.HardLink)
                assert plot[child] == file[child]


def test_an_empty_history_is_one_too(tmp_path: Path) -> None:
    path = tmp_path / "history.h5"
    write_history_file(path, History(), "{}", {})
    assert repr(read_history_file(path)) == repr(History())


def test_a_checkpoint_replaces_the_history_of_its_run(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    assert repr(read_history_file(tmp_path / "history.h5")) == repr(make_history(3))


def test_viewers_see_all_weights_in_uid_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_layout()
    folder = write(tmp_path)
    population = make_population(5, layout)
    monkeypatch.chdir("/")
    with h5py.File(folder / "population.h5") as file:
        assert list(file["uid"]) == [i.uid for i in population.individuals]
        for row, individual in enumerate(population.individuals):
            expected = make_weights(individual.uid, layout)
            assert file["weights"][row].tobytes() == expected.tobytes()
        assert file["fitness"].dims[0][0] == file["uid"]
        assert file["parents"][...].tolist() == [[2, 3], [-1, -1], [-1, -1], [11, -1], [-1, -1]]
        assert file["origin"].attrs["flag_meanings"] == "initial sgd offspring anchor"
        assert file["noise_seed"][0].decode() == population.individuals[0].noise_seed
    (folder / "leader_00000.h5").unlink()
    with h5py.File(folder / "population.h5") as file:
        assert np.isnan(file["weights"][...]).all()


# ---------------------------------------------------------------- damage


def flip(path: Path, offset: int) -> None:
    """Invert a byte."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


def weights_offset(folder: Path, row: int) -> int:
    """Return where in leader 0's file a row lies."""
    with h5py.File(folder / "leader_00000.h5") as file:
        return int(file["weights"].id.get_chunk_info(row).byte_offset)


def flip_weights(folder: Path) -> None:
    flip(folder / "leader_00000.h5", weights_offset(folder, 2) + 5)


def truncate(folder: Path) -> None:
    os.truncate(folder / "leader_00000.h5", 100)


def link_away(folder: Path) -> None:
    (folder / "leader_00000.h5").rename(folder / "elsewhere.h5")
    (folder / "leader_00000.h5").symlink_to("elsewhere.h5")


def pipe(folder: Path) -> None:
    (folder / "COMMIT.json").unlink()
    os.mkfifo(folder / "COMMIT.json")


def change_commit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    commit = json.loads((folder / "COMMIT.json").read_text())
    change(commit)
    (folder / "COMMIT.json").write_text(json.dumps(commit))


def list_file(name: str) -> Callable[[Path], None]:
    entry = {"size": 1, "crc32": 1}
    return lambda folder: change_commit(folder, lambda c: c["files"].update({name: entry}))


def change_population(change: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    """Return what changes population.h5 and makes COMMIT.json agree, as an attacker would."""

    def damage(folder: Path) -> None:
        with h5py.File(folder / "population.h5", "r+") as file:
            change(file)
        found = msgspec.to_builtins(files.file_sum(folder / "population.h5"))
        change_commit(folder, lambda c: c["files"].update({"population.h5": found}))

    return damage


def replace(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file[name] = value

    return change


def change_layout(old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(file: h5py.File) -> None:
        text = bytes(file["layout"][()])
        assert old in text
        replace("layout", np.bytes_(text.replace(old, new)))(file)

    return change_population(change)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (flip_weights, "leader_00000.h5: damaged: CRC-32"),
    "population": (lambda f: flip(f / "population.h5", 4000), "population.h5: damaged: CRC-32"),
    "truncated": (truncate, "leader_00000.h5: 100 bytes instead of"),
    "no leader": (lambda f: (f / "leader_00000.h5").unlink(), "leader_00000.h5: missing"),
    "no population": (lambda f: (f / "population.h5").unlink(), "population.h5: missing"),
    "no commit": (lambda f: (f / "COMMIT.json").unlink(), "COMMIT.json: missing"),
    "link": (link_away, "not a plain file"),
    "newer": (
        lambda f: (f / "COMMIT.json").write_text('{"format": 3, "anything": {}}'),
        "format 3, but this esgd reads formats up to 2",
    ),
    "pipe": (pipe, "COMMIT.json: not a plain file"),
    "not JSON": (lambda f: (f / "COMMIT.json").write_bytes(b"\xff{"), "COMMIT.json: damaged"),
    "deep": (lambda f: (f / "COMMIT.json").write_text("[" * 10**5), "COMMIT.json: damaged"),
    "folder": (list_file("../../etc/passwd"), "not a file of a checkpoint"),
    "absolute": (list_file("/etc/passwd"), "not a file of a checkpoint"),
    "needless": (list_file("leader_00001.h5"), "leader_00001.h5"),
    "negative": (
        lambda f: change_commit(f, lambda c: c["files"]["population.h5"].update(size=-1)),
        "COMMIT.json: damaged",
    ),
    "unlisted": (
        lambda f: change_commit(f, lambda c: c["files"].pop("leader_00000.h5")),
        "COMMIT.json does not list leader_00000.h5",
    ),
    "number": (
        lambda f: change_commit(f, lambda c: c.update(generation=9)),
        "says generation 9",
    ),
    "no column": (change_population(lambda file: file.pop("fitness")), "fitness: missing"),
    "external": (
        change_population(replace("fitness", h5py.ExternalLink("leader_00000.h5", "uid"))),
        "fitness: missing",
    ),
    "too large": (
        change_population(
            lambda file: (file.pop("uid"), file.create_dataset("uid", (2**40,), "<i8"))
        ),
        "claims",
    ),
    "order": (
        change_population(lambda file: file["uid"].__setitem__(slice(None), [5, 4, 3, 2, 1])),
        "rising",
    ),
    "owner": (
        change_population(lambda file: file["group"].__setitem__(0, 3)),
        "group: not all from 0 to 0",
    ),
    "record": (
        change_population(lambda file: file["record"].__setitem__(0, b'{"uid": "one"}')),
        "damaged, or not a file of esgd",
    ),
    "deep record": (
        change_population(replace("record", np.array([b"[" * 10**5] * 5))),
        "damaged, or not a file of esgd",
    ),
    "text of any length": (
        change_population(replace("recipe", "{}")),
        "recipe: not texts of shape ()",
    ),
    "size": (change_layout(b'"size":12', b'"size":4000000000'), "does not fit"),
    "shape": (change_layout(b"[3,4]", b"[-3,-4]"), "does not fit"),
    "type": (change_layout(b'"int64"', b'"O"'), "does not fit"),
    "alias": (change_layout(b"decoder.weight", b"encoder.weight"), "does not fit"),
    "kind": (change_layout(b'"buffer"', b'"code"'), "damaged, or not a file of esgd"),
    "attribute": (
        change_population(lambda file: file.attrs.__setitem__("next_uid", "many")),
        "next_uid: not a whole number",
    ),
    "history": (change_population(lambda file: file.pop("history")), "history: missing"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_and_the_generation_before_taken(tmp_path: Path, case: str) -> None:
    damage, told = DAMAGE[case]
    before = write(tmp_path, 1)
    newest = write(tmp_path, 2)
    shutil.copytree(newest, tmp_path / "copy")
    damage(newest)
    problems = verify_checkpoint(newest)
    assert any(told in problem for problem in problems)
    found, notes = newest_valid(tmp_path)
    assert found == before
    assert len(notes) == 1
    assert notes[0].startswith("gen_000002 is skipped: ")
    assert newest_valid(newest) == (None, notes)
    assert verify_checkpoint(tmp_path / "copy") == []


def test_damaged_weights_are_not_handed_out(tmp_path: Path) -> None:
    folder = write(tmp_path)
    flip_weights(folder)
    checkpoint = open_checkpoint(folder)
    checkpoint.read_weights([1, 4])
    with pytest.raises(InputError, match="weights of individual 7 are damaged"):
        checkpoint.read_weights([7])
    with pytest.raises(InputError, match="weights of individual 7 are damaged"):
        population_digest(checkpoint)


def test_two_newest_damaged(tmp_path: Path) -> None:
    for generation in (1, 2, 3):
        write(tmp_path, generation, keep=3)
    flip(tmp_path / "gen_000003" / "leader_00000.h5", 50)
    (tmp_path / "gen_000002" / "COMMIT.json").unlink()
    found, notes = newest_valid(tmp_path)
    assert found == tmp_path / "gen_000001"
    assert [note[:10] for note in notes] == ["gen_000003", "gen_000002"]


def test_nothing_depends_on_latest(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to("gen_000099")
    assert newest_valid(tmp_path) == (folder, [])
    assert write(tmp_path, 2) == (tmp_path / "latest").resolve()


def test_a_folder_without_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "gen_000003.tmp").mkdir()
    assert newest_valid(tmp_path) == (None, [])
    assert newest_valid(tmp_path / "none") == (None, [])


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("pristine"))


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_single_byte_can_change_unseen(
    pristine: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Fields of COMMIT.json that nothing is compared with do not exist."""
    folder = tmp_path / "gen_000001"
    shutil.copytree(pristine, folder, dirs_exist_ok=True)
    name = data.draw(st.sampled_from(["leader_00000.h5", "population.h5", "COMMIT.json"]))
    content = bytearray((folder / name).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / name).write_bytes(content)
    problems = verify_checkpoint(folder)
    if name == "COMMIT.json" and not problems:
        # Only white space can be other white space, and a digit a digit of another notation.
        assert json.loads(content) == json.loads((pristine / name).read_bytes())
    else:
        assert problems


# ---------------------------------------------------------------- publishing


def test_only_the_newest_are_kept_and_nothing_of_others_is_touched(tmp_path: Path) -> None:
    write(tmp_path, 1, keep=2)
    (tmp_path / "gen_000001" / "notes.txt").write_text("mine")
    (tmp_path / "notes").mkdir()
    (tmp_path / "gen_000000").mkdir()  # not complete: not ours to judge
    write(tmp_path, 2, keep=2)
    write(tmp_path, 3, keep=2)
    assert names(tmp_path) == [
        "gen_000000",
        "gen_000001.tmp",
        "gen_000002",
        "gen_000003",
        "history.h5",
        "latest",
        "notes",
    ]
    assert names(tmp_path / "gen_000001.tmp") == ["notes.txt"]
    assert (tmp_path / "latest").readlink() == Path("gen_000003")
    write(tmp_path, 4, keep=1)
    assert [g.number for g in files.generations(tmp_path)] == [4, 0]


@pytest.mark.parametrize("damage", [truncate, flip_weights])
def test_a_damaged_generation_does_not_count_as_kept(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    for generation in (1, 2):
        write(tmp_path, generation)
    damage(tmp_path / "gen_000002")
    write(tmp_path, 3)
    assert newest_valid(tmp_path)[0] == tmp_path / "gen_000003"
    assert verify_checkpoint(tmp_path / "gen_000001") == []


def test_a_damaged_generation_is_written_again(tmp_path: Path) -> None:
    for generation in (1, 2):
        write(tmp_path, generation)
    truncate(tmp_path / "gen_000002")
    write(tmp_path, 2)
    assert names(tmp_path) == ["gen_000001", "gen_000002", "history.h5", "latest"]
    assert verify_checkpoint(tmp_path / "gen_000002") == []


def test_a_newer_generation_is_neither_counted_nor_deleted(tmp_path: Path) -> None:
    for generation in (1, 5, 2):
        write(tmp_path, generation, keep=1)
    assert [g.number for g in files.generations(tmp_path)] == [5, 2]


def test_leftovers_of_a_killed_job_go(tmp_path: Path) -> None:
    write(tmp_path, 1)
    for name in ("gen_000002.tmp", "gen_000009.tmp", "gen_000001.old.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "leader_00000.h5").write_text("half")
    write(tmp_path, 2)
    assert names(tmp_path) == ["gen_000001", "gen_000002", "history.h5", "latest"]
    assert names(tmp_path / "gen_000002") == ["COMMIT.json", "leader_00000.h5", "population.h5"]


def test_the_same_generation_again(tmp_path: Path) -> None:
    write(tmp_path, 1, num_parents=5)
    write(tmp_path, 1, num_parents=3)
    assert names(tmp_path) == ["gen_000001", "history.h5", "latest"]
    assert len(open_checkpoint(tmp_path).individuals) == 3


@pytest.mark.parametrize("published", [False, True])
def test_killed_while_replacing_a_generation(tmp_path: Path, published: bool) -> None:
    """There is a whole one at every moment, and the next write cleans up."""
    final = write(tmp_path, 1, num_parents=5)
    final.rename(tmp_path / "gen_000001.old")
    if published:
        write(tmp_path / "other", 1, num_parents=3).rename(final)
    found, _ = newest_valid(tmp_path)
    assert found == (final if published else tmp_path / "gen_000001.old")
    assert len(open_checkpoint(tmp_path).individuals) == (3 if published else 5)
    write(tmp_path, 1, num_parents=4)
    assert [g.path.name for g in files.generations(tmp_path)] == ["gen_000001"]
    assert len(open_checkpoint(tmp_path).individuals) == 4


def test_the_newest_before_is_kept_also_under_its_other_name(tmp_path: Path) -> None:
    write(tmp_path, 1).rename(tmp_path / "gen_000001.old")
    write(tmp_path, 2)
    assert [g.path.name for g in files.generations(tmp_path)] == ["gen_000002", "gen_000001.old"]
    write(tmp_path, 3)
    assert [g.path.name for g in files.generations(tmp_path)] == ["gen_000003", "gen_000002"]


# ---------------------------------------------------------------- failing


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="run: cannot be written: File exists"):
        write(tmp_path / "run")
    assert (tmp_path / "run").read_text() == ""


def test_something_else_called_latest(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("mine")
    with pytest.raises(RunError, match="latest: not a link of ours"):
        write(tmp_path)
    assert names(tmp_path) == ["latest"]


def test_a_link_in_place_of_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "gen_000001.tmp").symlink_to(tmp_path / "mine")
    with pytest.raises(RunError, match="a link, not a folder of ours"):
        write(tmp_path / "run")
    assert names(tmp_path / "mine") == []


LIMITED = """
    import resource
    import sys
    from pathlib import Path

    sys.path.insert(0, {tests!r})
    import unit.test_checkpoint as test
    from unit.test_checkpoint import RunError, make_layout, names, verify_checkpoint, write

    folder = Path({folder!r})
    before = write(folder, 1)
    contents = names(folder)
    hidden = {hidden}
    test.make_layout = lambda: make_layout(hidden)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for _ in range(2):
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, hard))
        try:
            write(folder, 2)
        except RunError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            print(error)
        assert names(folder) == contents, names(folder)
        assert verify_checkpoint(before) == []
    assert verify_checkpoint(write(folder, 2)) == []
"""


@pytest.mark.parametrize(
    ("hidden", "limit", "refused"),
    [
        (4, 0, "leader_00000.h5"),
        (4, 100, "leader_00000.h5"),
        (500_000, 3_000_000, "leader_00000.h5"),
        (4, 10_000, "population.h5"),
    ],
)
def test_a_full_disk_is_one_error_and_costs_nothing(
    tmp_path: Path, hidden: int, limit: int, refused: str
) -> None:
    """HDF5 alone would crash the process here, at the latest when it ends."""
    tests = str(Path(__file__).parents[1])
    script = LIMITED.format(tests=tests, folder=str(tmp_path / "run"), hidden=hidden, limit=limit)
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    told = result.stdout.splitlines()
    assert len(told) == 2
    assert all(f"{refused}: cannot be written: File too large" in line for line in told)


def test_weights_that_do_not_fit_the_layout(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"individual 3: weights of shape \(4,\), not \(5,\)"):
        write_weights_file(tmp_path / "x.h5", {3: np.zeros(4, dtype=np.float32)}, 5)


# ---------------------------------------------------------------- state dicts


def test_state_dict_has_every_name_type_and_bit() -> None:
    layout = make_layout()
    vector = make_weights(1, layout)
    counted = np.array([1234567890123], dtype=np.int64)
    vector[21:23] = counted.view(np.float32)
    vector[23:25] = np.frombuffer(b"\x01\x00\x01\x01\x00\x00\x00\x00", dtype=np.float32)
    arrays = state_dict_arrays(layout, vector)
    assert set(arrays) == {entry.name for entry in layout.entries} | {"decoder.weight"}
    assert arrays["decoder.weight"] is arrays["encoder.weight"]
    assert arrays["encoder.weight"].tobytes() == vector[:12].tobytes()
    assert arrays["scale"].shape == ()
    assert arrays["norm.num_batches_tracked"] == 1234567890123
    assert arrays["mask"].tolist() == [True, False, True, True, False]
    assert vector_from(layout, arrays, "test").tobytes() == vector.tobytes()


@pytest.fixture
def arrays() -> dict[str, Any]:
    return state_dict_arrays(make_layout(), np.arange(25, dtype=np.float32) * 0)


def test_state_dict_may_leave_out_counters_and_other_names(arrays: dict[str, Any]) -> None:
    arrays["decoder.weight"] = np.ones((3, 4), dtype=np.float16)
    for name in ("encoder.weight", "norm.num_batches_tracked", "mask"):
        del arrays[name]
    vector = vector_from(make_layout(), arrays, "test")
    assert vector.dtype == np.float32
    assert vector[:12].tolist() == [1.0] * 12
    assert not vector[12:].any()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"scale": None}, "anchor: not the weights of this model: missing scale"),
        ({"head.bias": np.zeros(2)}, "unexpected head.bias"),
        ({"encoder.bias": np.zeros(3)}, r"encoder.bias has shape \[3\], the model's has \[4\]"),
        ({"encoder.bias": np.zeros(4, dtype=int)}, "encoder.bias is int64, the model's is float"),
        ({"mask": np.zeros(5)}, "mask is float64, the model's is whole numbers"),
        ({"mask": np.full(5, 3)}, "mask has values that bool cannot hold"),
        ({"decoder.weight": np.ones((3, 4))}, "are one tensor of the model, but differ"),
    ],
)
def test_state_dict_of_another_model(
    arrays: dict[str, Any], change: dict[str, Any], told: str
) -> None:
    arrays = {name: array for name, array in (arrays | change).items() if array is not None}
    with pytest.raises(InputError, match=told):
        vector_from(make_layout(), arrays, "anchor")


def test_weights_file_of_another_program(tmp_path: Path, arrays: dict[str, Any]) -> None:
    path = tmp_path / "anchor.safetensors"
    write_state_dict(path, arrays, {})
    read = read_state_dict(path)
    assert vector_from(make_layout(), read, "test").tobytes() == bytes(100)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"not a \.safetensors file that can be read"):
        read_state_dict(path)
    with pytest.raises(InputError, match="no such file"):
        read_state_dict(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match=r"only \.safetensors files are read"):
        read_state_dict(tmp_path / "anchor.pt")


def test_a_weights_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, arrays: dict[str, Any]
) -> None:
    path = tmp_path / "best.safetensors"
    path.write_text("old")
    with pytest.raises(InputError, match=r"must end in \.safetensors or \.pt"):
        write_state_dict(tmp_path / "best.npz", arrays, {})
    with pytest.raises(InputError, match="does not exist; make it first"):
        write_state_dict(tmp_path / "none" / "best.pt", arrays, {})
    (tmp_path / "best.safetensors.tmp").mkdir()
    with pytest.raises(RunError, match="cannot be written"):
        write_state_dict(path, arrays, {})
    assert path.read_text() == "old"
    (tmp_path / "best.safetensors.tmp").rmdir()
    write_state_dict(path, arrays, {})
    assert names(tmp_path) == ["best.safetensors"]
