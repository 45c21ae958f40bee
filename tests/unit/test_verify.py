"""`esgd verify` names what is damaged; no file, however hostile, hangs or crashes it."""

import json
import os
import random
import signal
import struct
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import msgspec
import numpy as np
import pytest
from mpi4py import MPI

from esgd_hpc.checkpoint import files, isolated
from esgd_hpc.checkpoint.isolated import Allowance, Reader
from esgd_hpc.checkpoint.verify import examine_checkpoint, newest_valid
from esgd_hpc.checkpoint.weights_file import write_weights_file
from esgd_hpc.cli import main
from esgd_hpc.errors import InputError, RunError
from esgd_hpc.parallel.topology import Topology
from unit.test_checkpoint import (
    flip,
    make_history,
    make_individual,
    make_layout,
    make_population,
    make_weights,
    replace,
    write,
    write_checkpoint,
)

LEADER, POPULATION = "leader_00000.h5", "population.h5"


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader() as reader:
        yield reader


def row_offset(folder: Path, uid: int, name: str = LEADER) -> int:
    """Return at which byte of a file of weights those of an individual begin."""
    return (folder / name).read_bytes().index(make_weights(uid, make_layout()).tobytes())


def vouch(folder: Path) -> None:
    """Let COMMIT.json agree with the files as they are, as an attacker would."""
    commit = json.loads((folder / "COMMIT.json").read_text())
    for name in commit["files"]:
        commit["files"][name] = msgspec.to_builtins(files.file_sum(folder / name))
    (folder / "COMMIT.json").write_text(json.dumps(commit))


# ---------------------------------------------------------------- whose weights


def test_every_damaged_row_is_named(tmp_path: Path, reader: Reader) -> None:
    folder = write(tmp_path)  # uids 1, 4, 7, 10, 13
    for uid in (4, 13):
        flip(folder / LEADER, row_offset(folder, uid) + 5)
    found = examine_checkpoint(folder, reader)
    assert found.lost == [4, 13]
    assert found.problems[0].startswith(f"{LEADER}: damaged: CRC-32 ")
    assert found.problems[1:] == [
        f"{LEADER}: the weights of individual {uid} are damaged" for uid in (4, 13)
    ]


def test_damaged_rows_are_named_also_where_the_population_is_damaged(
    tmp_path: Path, reader: Reader
) -> None:
    folder = write(tmp_path)
    flip(folder / POPULATION, 4000)
    flip(folder / LEADER, row_offset(folder, 7))
    found = examine_checkpoint(folder, reader)
    assert found.lost == [7]
    assert [problem.partition(":")[0] for problem in found.problems] == [POPULATION, LEADER, LEADER]


def test_a_row_under_another_name_is_that_of_the_individual_who_should_be_there(
    tmp_path: Path, reader: Reader
) -> None:
    folder = write(tmp_path)
    uids = np.array([1, 4, 7, 10, 13], dtype="<i8").tobytes()
    flip(folder / LEADER, (folder / LEADER).read_bytes().index(uids) + 8)
    assert examine_checkpoint(folder, reader).lost == [4]


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: os.truncate(path, 100)])
def test_a_lost_file_loses_all_that_is_in_it(
    tmp_path: Path, reader: Reader, lose: Callable[[Path], object]
) -> None:
    folder = write(tmp_path)
    lose(folder / LEADER)
    found = examine_checkpoint(folder, reader)
    assert found.lost == [1, 4, 7, 10, 13]
    assert found.problems[1] == f"{LEADER}: the weights of individuals 1, 4, 7, 10, 13 are in it"


def test_a_row_that_was_never_right_is_found_although_the_file_is_as_written(
    tmp_path: Path, reader: Reader
) -> None:
    """What verify calls whole, resuming and exporting can read."""
    folder = write(tmp_path)
    flip(folder / LEADER, row_offset(folder, 10))
    vouch(folder)
    found = examine_checkpoint(folder, reader)
    assert found == ([f"{LEADER}: the weights of individual 10 are damaged"], [10])


def test_a_damaged_champion_is_named(tmp_path: Path, reader: Reader) -> None:
    layout = make_layout()
    population = make_population(5, layout)
    population.champion = make_individual(2)
    population.champion_weights = make_weights(2, layout)
    topology = Topology(MPI.COMM_SELF, 1)
    write_checkpoint(tmp_path, population, layout, make_history(2), topology)
    topology.close()
    folder = tmp_path / "gen_000001"
    assert examine_checkpoint(folder, reader) == ([], [])
    flip(folder / "champion.h5", row_offset(folder, 2, "champion.h5"))
    found = examine_checkpoint(folder, reader)
    assert found.problems[1:] == ["champion.h5: the weights of individual 2 are damaged"]
    assert found.lost == [2]


def test_nothing_is_wrong_with_what_is_whole(tmp_path: Path, reader: Reader) -> None:
    assert examine_checkpoint(write(tmp_path), reader) == ([], [])


# ---------------------------------------------------------------- hostile files


def change(name: str, edit: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        with h5py.File(folder / name, "r+") as file:
            edit(file)

    return damage


def change_population(edit: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    return change(POPULATION, edit)


def change_leader(edit: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    return change(LEADER, edit)


def attributes(**values: int) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.update(values)


def change_record(**fields: Any) -> Callable[[h5py.File], None]:
    """Replace fields of the first individual."""

    def edit(file: h5py.File) -> None:
        texts = [json.loads(text) for text in file["record"][...]]
        texts[0] |= fields
        replace("record", np.array([json.dumps(text).encode() for text in texts]))(file)

    return edit


def change_layout(**fields: Any) -> Callable[[h5py.File], None]:
    """Replace fields of the first tensor."""

    def edit(file: h5py.File) -> None:
        layout = json.loads(file["layout"][()])
        layout["entries"][0] |= fields
        replace("layout", np.bytes_(json.dumps(layout).encode()))(file)

    return edit


def mirror(file: h5py.File) -> None:
    """Make `weights` a view of itself; HDF5 runs out of stack where that is read."""
    del file["weights"]
    space = h5py.h5s.create_simple((5, 25), (h5py.h5s.UNLIMITED, 25))
    space.select_hyperslab((0, 0), (h5py.h5s.UNLIMITED, 1), (1, 1), (1, 25))
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_virtual(space, b".", b"weights", space)
    h5py.h5d.create(file.id, b"weights", h5py.h5t.IEEE_F32LE, space, properties)


def be_own_parent(file: h5py.File) -> None:
    births = file["history/lineage/individual"]
    births["parents"][1, 0] = births["uid"][1]


def in_old_format(folder: Path) -> bytearray:
    """Write the leader file anew without checksums of its metadata, and return its bytes."""
    with h5py.File(folder / LEADER) as file:
        columns = {name: file[name][...] for name in ("uid", "crc32", "weights")}
    with h5py.File(folder / LEADER, "w", libver="earliest") as file:
        for name, values in columns.items():
            chunks = (1, values.shape[1]) if name == "weights" else None
            file.create_dataset(name, data=values, chunks=chunks)
        for number in range(20):
            file.attrs[f"number {number}"] = number
    return bytearray((folder / LEADER).read_bytes())


def put(content: bytearray, offset: int, number: int) -> None:
    """Replace 8 bytes."""
    content[offset : offset + 8] = number.to_bytes(8, "little")


def aligned(content: bytearray, start: bytes) -> list[int]:
    """Return where, at multiples of 8, some bytes are; at least one place."""
    found = [o for o in range(0, len(content), 8) if content[o : o + len(start)] == start]
    assert found
    return found


def garbage_superblock(folder: Path) -> None:
    content = bytearray((folder / LEADER).read_bytes())
    content[8:48] = random.Random(1).randbytes(40)
    (folder / LEADER).write_bytes(content)


def damaged_chunk_index(folder: Path) -> None:
    """Let each chunk lie behind the end of the file."""
    content = in_old_format(folder)
    for node in aligned(content, b"TREE\x01"):
        for chunk in range(5):  # 24 bytes, and for each chunk a key of 32 and an address
            put(content, node + 24 + 40 * chunk + 32, 2**40)
    (folder / LEADER).write_bytes(content)


def looping_chunk_index(folder: Path) -> None:
    """Let the tree of chunks have itself for a child."""
    content = in_old_format(folder)
    for node in aligned(content, b"TREE\x01"):
        content[node + 5] = 1  # not a leaf
        put(content, node + 56, node)
    (folder / LEADER).write_bytes(content)


def looping_free_list(folder: Path) -> None:
    """Let the free room in the heap of names be followed by itself; HDF5 never stops reading it."""
    content = in_old_format(folder)
    for heap in aligned(content, b"HEAP"):
        first, data = struct.unpack_from("<QQ", content, heap + 16)
        put(content, data + first, first)
    (folder / LEADER).write_bytes(content)


def looping_object_header(folder: Path) -> None:
    """Let the root's attributes go on, at the end of their first block, at that block."""
    content = in_old_format(folder)
    root = int.from_bytes(content[64:72], "little")  # by the superblock
    for message in aligned(content, b"\x10\0\x10\0"):  # "goes on at", 16 bytes
        put(content, message + 8, root + 16)
    (folder / LEADER).write_bytes(content)


DEEP = "[" * 500 + "]" * 500
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "groups beyond all memory": (
        change_population(attributes(groups=2**40, ranks=2**40)),
        "population.h5 says 1099511627776 groups",
    ),
    "some groups more": (
        change_population(attributes(groups=3, ranks=3)),
        "COMMIT.json does not list leader_00001.h5",
    ),
    "ranks": (change_population(attributes(ranks=7)), "ranks: 7 are not 1 groups of 1"),
    "next uid": (change_population(attributes(next_uid=2**62 * 2)), "next_uid 9223372036854775808"),
    "parents": (change_population(change_record(parents=[10**400])), "record: individual 1: out"),
    "epochs": (change_population(change_record(epochs=2**70)), "record: individual 1: out of"),
    "noise": (change_population(change_record(noise_seed="-1")), "record: individual 1: out of"),
    "NaN fitness": (
        change_population(lambda file: file["fitness"].__setitem__(0, np.nan)),
        "record: individual 1: out of bounds",
    ),
    "NaN generation": (
        change_population(lambda file: file.attrs.__setitem__("generation", np.nan)),
        "generation: not a whole number",
    ),
    "long tensor": (
        change_population(change_layout(shape=[10**4000] * 1000)),
        "layout: entry 'encoder.weight' does not fit",
    ),
    "tensor of many dimensions": (
        change_population(change_layout(shape=[1] * 10**5, size=1)),
        "layout: entry 'encoder.weight' does not fit",
    ),
    "deep recipe": (
        change_population(replace("recipe", np.bytes_(f'{{"task_options": {DEEP}}}'))),
        "recipe: nested more than",
    ),
    "own parent": (change_population(be_own_parent), "a parent of individual 1 is not older"),
    "lineage of other lengths": (
        change_population(replace("history/lineage/step/uid", np.arange(3))),
        "uid: int64 of shape (3,), expected",
    ),
    "cyclic group": (
        change_population(replace("history", h5py.SoftLink("/"))),
        "history: missing",
    ),
    "cyclic hard link": (
        change_population(lambda f: (f.pop("history"), f.__setitem__("history", f["/"]))),
        "generation: missing",
    ),
    "view of itself": (change_leader(mirror), "weights: stored in another way"),
    "external": (
        change_leader(
            lambda file: (
                file.pop("uid"),
                file.create_dataset("uid", (5,), "<i8", external=[("/dev/zero", 0, 40)]),
            )
        ),
        "uid: stored in another way",
    ),
    "weights beyond all memory": (
        change_leader(
            lambda file: (
                file.pop("weights"),
                file.create_dataset("weights", (5, 2**40), "<f4", chunks=(1, 2**20)),
            )
        ),
        "weights: claims",
    ),
    "overflow": (
        change_leader(
            lambda file: (
                file.pop("weights"),
                file.create_dataset("weights", (2**33, 2**33), "<f4", chunks=(1, 2**20)),
            )
        ),
        LEADER,
    ),
    "no superblock": (garbage_superblock, "leader_00000.h5: damaged, or not a file of esgd"),
    "header in a circle": (looping_object_header, "leader_00000.h5: damaged, or not a file of"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_and_the_generation_before_taken(
    tmp_path: Path, reader: Reader, case: str
) -> None:
    """In this process too, where a run starts: sums are right, and nothing grows or loops."""
    damage, told = HOSTILE[case]
    before, newest = write(tmp_path, 0), write(tmp_path, 1)
    damage(newest)
    vouch(newest)
    found = examine_checkpoint(newest, reader)
    assert told in found.problems[0]
    assert newest_valid(tmp_path)[0] == before


@pytest.mark.parametrize("damage", [damaged_chunk_index, looping_chunk_index])
def test_rows_that_a_hostile_index_hides_are_lost(
    tmp_path: Path, reader: Reader, damage: Callable[[Path], None]
) -> None:
    folder = write(tmp_path)
    damage(folder)
    vouch(folder)
    found = examine_checkpoint(folder, reader)
    assert found.lost == [1, 4, 7, 10, 13]
    assert all(LEADER in problem for problem in found.problems)


@pytest.mark.parametrize("name", [LEADER, POPULATION])
def test_whatever_bytes_a_file_has_it_gets_a_verdict(
    tmp_path: Path, reader: Reader, name: str
) -> None:
    """Sums are right, and every other time the format is one without checksums of metadata."""
    folder = write(tmp_path)
    whole = [(folder / name).read_bytes()]
    if name == LEADER:
        whole.append(bytes(in_old_format(folder)))
    draw = random.Random(1)
    refused = 0
    for mutant in range(52):
        content = bytearray(whole[mutant % len(whole)])
        for _ in range(draw.choice([1, 1, 2, 8])):
            place = draw.randrange(0, min(len(content), 4096) - 8, 8)
            number = draw.choice([draw.randrange(256), draw.randrange(len(content)), 2**64 - 1])
            put(content, place, number)
        (folder / name).write_bytes(content)
        vouch(folder)
        started = time.monotonic()
        found = examine_checkpoint(folder, reader)
        assert time.monotonic() - started < 60
        assert all(name in problem for problem in found.problems), (mutant, found)
        refused += bool(found.problems)
    assert 10 < refused < 52


# ---------------------------------------------------------------- the child


def refused(path: Path, allowed: Allowance) -> str:
    """Return why a file of weights cannot be read with this time and memory."""
    with Reader(lambda kind, size: allowed) as reader, pytest.raises(InputError) as caught:
        reader.weights(path)
    return str(caught.value)


def test_hdf5_that_never_ends_is_stopped(tmp_path: Path) -> None:
    path = write(tmp_path) / LEADER
    looping_free_list(path.parent)
    told = refused(path, Allowance(1.0, 2**40))
    assert told == f"{path}: reading it took more than 1 seconds and was given up"


def test_hdf5_that_asks_for_all_memory_is_refused_it(tmp_path: Path) -> None:
    path = write(tmp_path) / LEADER
    looping_free_list(path.parent)
    assert "memory allocation failed" in refused(path, Allowance(600.0, 2**28))


def test_a_long_file_is_given_the_time_that_it_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / LEADER
    size = 2**23
    write_weights_file(path, {uid: np.zeros(size, dtype=np.float32) for uid in range(4)}, size)
    told = refused(path, Allowance(0.001, 2**30))
    assert told == f"{path}: reading it took more than 0.001 seconds and was given up"
    with Reader() as reader:
        assert reader.weights(path).damaged == []


def test_objects_that_need_much_memory_are_refused_it(tmp_path: Path) -> None:
    folder = write(tmp_path)
    recipe = b'{"task": [' + b"[]," * 2**22 + b"[]]}"
    change_population(replace("recipe", np.bytes_(recipe)))(folder)
    vouch(folder)
    with Reader(lambda kind, size: Allowance(600.0, 2**28)) as reader:
        found = examine_checkpoint(folder, reader)
    path = folder / POPULATION
    assert found.problems == [
        f"{path}: reading it needs more than 256 MiB of memory and was given up"
    ]


TRUSTING = """
    from esgd_hpc.checkpoint import hdf5, isolated

    careful = hdf5.read_dataset

    def read_dataset(group, name):
        if name == "weights":
            group[name][...]
        return careful(group, name)

    hdf5.read_dataset = read_dataset
    isolated.main()
"""


def test_a_crash_of_hdf5_is_told_and_hides_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 does crash where it reads a view of itself, as it does once our care is taken away."""
    command = [sys.executable, "-P", "-c", textwrap.dedent(TRUSTING)]
    monkeypatch.setattr(isolated, "_COMMAND", command)
    before, newest = write(tmp_path, 0), write(tmp_path, 1)
    change_leader(mirror)(newest)
    vouch(newest)
    flip(before / LEADER, row_offset(before, 6))
    with Reader() as reader:
        assert examine_checkpoint(newest, reader).problems == [
            f"{newest / LEADER}: the process that read it died (SIGSEGV)",
            f"{LEADER}: the weights of individuals 1, 4, 7, 10, 13 are in it",
        ]
        assert examine_checkpoint(before, reader).lost == [6]


def test_without_child_processes_there_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path)
    for command in (["/bin/false"], [str(tmp_path / "none")]):
        monkeypatch.setattr(isolated, "_COMMAND", command)
        with Reader() as reader, pytest.raises(RunError, match="cannot start a process to read"):
            examine_checkpoint(folder, reader)


def test_a_child_that_was_killed_between_files_is_replaced(tmp_path: Path) -> None:
    folder = write(tmp_path)
    with Reader() as reader:
        assert examine_checkpoint(folder, reader).problems == []
        assert reader._child is not None
        os.kill(reader._child.pid, signal.SIGKILL)
        assert examine_checkpoint(folder, reader).problems == []


def test_this_process_opens_no_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, newest = write(tmp_path, 0), write(tmp_path, 1)
    flip(newest / LEADER, row_offset(newest, 7))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("HDF5 was opened")

    monkeypatch.setattr(h5py, "File", refuse)
    with Reader() as reader:
        assert examine_checkpoint(newest, reader).lost == [7]
        assert examine_checkpoint(before, reader).problems == []


def test_a_run_that_starts_opens_no_hdf5_that_was_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, newest = write(tmp_path, 0), write(tmp_path, 1)
    flip(newest / LEADER, row_offset(newest, 7))
    opened: list[Path] = []
    really = h5py.File

    def watch(path: Path, *arguments: Any, **options: Any) -> h5py.File:
        opened.append(path)
        return really(path, *arguments, **options)

    monkeypatch.setattr(h5py, "File", watch)
    found, notes = newest_valid(tmp_path)
    assert found == before
    assert f"gen_000001 is skipped: {LEADER}: damaged: CRC-32" in notes[0]
    assert set(opened) == {newest / POPULATION, before / POPULATION, before / LEADER}


# ---------------------------------------------------------------- the command


def verify(run: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], list[str]]:
    """Return the status, the object and the lines of `esgd verify`."""
    status = main(["verify", str(run), "--json"])
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert main(["verify", str(run)]) == status
    return status, report, capsys.readouterr().out.splitlines()


def test_verify_tells_programs_and_people_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 0)
    newest = write(tmp_path, 1)
    flip(newest / LEADER, row_offset(newest, 7))
    status, report, lines = verify(tmp_path, capsys)
    assert status == 1
    assert set(report) == {"run", "ok", "generations", "problems", "notes"}
    assert report["ok"] is False
    damaged, whole = report["generations"]
    assert damaged["problems"][1] == f"{LEADER}: the weights of individual 7 are damaged"
    assert (damaged["folder"], damaged["ok"], damaged["lost"]) == ("gen_000001", False, [7])
    assert whole == {"folder": "gen_000000", "ok": True, "problems": [], "lost": []}
    assert lines == [
        "gen_000001  DAMAGED",
        *(f"    {problem}" for problem in damaged["problems"]),
        "gen_000000  ok",
    ]
    assert verify(tmp_path / "gen_000000", capsys)[0] == 0


def test_what_no_checkpoint_needs_is_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, 0)
    (tmp_path / "gen_000007.tmp").mkdir()
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").symlink_to("gen_000099")
    status, report, lines = verify(tmp_path, capsys)
    assert status == 0
    assert report["notes"] == [
        "latest names a generation that is gone; nothing depends on it",
        "gen_000007.tmp was not finished; the next checkpoint deletes it",
    ]
    assert lines[1:] == [f"note: {note}" for note in report["notes"]]


def become_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: os.truncate(path, 500), "history.h5: damaged, or not a file of esgd"),
        (become_a_pipe, "history.h5: not a plain file"),
    ],
)
def test_a_damaged_history_is_damage(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], object],
    told: str,
) -> None:
    write(tmp_path)
    assert verify(tmp_path, capsys)[0] == 0
    damage(tmp_path / "history.h5")
    status, report, lines = verify(tmp_path, capsys)
    assert status == 1
    assert told in report["problems"][0]
    assert told in lines[-1]
    (tmp_path / "history.h5").unlink()
    assert verify(tmp_path, capsys)[0] == 0


def test_folders_of_any_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xfcn \x1b[31m"))
    write(run)
    (run / "history.h5").write_bytes(b"")
    status, report, lines = verify(run, capsys)
    assert status == 1
    assert report["generations"][0]["ok"] is True
    assert report["problems"][0].startswith(f"{run}/history.h5: damaged")
    assert "\x1b" not in "".join(lines)
