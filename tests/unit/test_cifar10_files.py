"""CIFAR-10's original files are read as they are, and hostile ones do nothing but end in an error.

The pictures are twenty genuine ones out of the wheel of foolbox; the files are written here.
"""

import gzip
import importlib.util
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import esgd_hpc.data.prepare.cifar10 as cifar10
from esgd_hpc.data.pickled import NotPlain, PickledArray, read_pickle
from esgd_hpc.data.prepare import prepare
from esgd_hpc.data.store import open_store, read, writing
from esgd_hpc.errors import InputError

BATCHES = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]


class Pictures(NamedTuple):
    pixels: npt.NDArray[np.uint8]
    """[n, 32, 32, 3]."""
    labels: list[int]


@pytest.fixture(scope="module")
def genuine() -> Pictures:
    """Return twenty pictures of CIFAR-10's test set."""
    found = importlib.util.find_spec("foolbox")
    if found is None or found.origin is None:
        pytest.skip("needs the pictures in foolbox's wheel: pip install --no-deps foolbox")
    files = sorted((Path(found.origin).parent / "data").glob("cifar10_*.png"))
    assert len(files) == 20
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return Pictures(pixels, [int(file.stem.split("_")[2]) for file in files])


@pytest.fixture
def drawn() -> Pictures:
    """Return four pictures that need no package."""
    stream = np.random.default_rng(4)
    return Pictures(stream.integers(0, 256, (4, 32, 32, 3), np.uint8), [0, 9, 3, 7])


def turned(pictures: Pictures, by: int) -> Pictures:
    """Return them in another order, so that no two files are the same."""
    labels = pictures.labels[by:] + pictures.labels[:by]
    return Pictures(np.roll(pictures.pixels, -by, axis=0), labels)


# Writers, from the description on the data set's page ---------------------------------------------


def as_pickle(pictures: Pictures, protocol: int = 2, key: Callable[[str], Any] = str.encode) -> Any:
    colours = [pictures.pixels[:, :, :, c].reshape(-1, 1024) for c in range(3)]
    return pickle.dumps(
        {
            key("batch_label"): key("training batch 1 of 5"),
            key("labels"): pictures.labels,
            key("data"): np.hstack(colours),
            key("filenames"): [key(f"picture_{n}.png") for n in range(len(pictures.labels))],
        },
        protocol=protocol,
    )


def as_records(pictures: Pictures) -> bytes:
    records = []
    for image, label in zip(pictures.pixels, pictures.labels, strict=True):
        red, green, blue = (image[:, :, c].tobytes() for c in range(3))
        records.append(bytes([label]) + red + green + blue)
    return b"".join(records)


class Python2:
    """Write a batch with the instructions that Python 2 and the numpy of its time chose."""

    def __init__(self, pictures: Pictures) -> None:
        colours = [pictures.pixels[:, :, :, c].reshape(-1, 1024) for c in range(3)]
        pixels = np.hstack(colours).tobytes()
        count = struct.pack("<H", len(pictures.labels))
        self.content = b"".join(
            [
                b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03(",
                *(b"K" + bytes([label]) for label in pictures.labels),
                b"eU\x04dataq\x04cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06",
                b"K\x00\x85U\x01b\x87Rq\x07(K\x01M" + count + b"M\x00\x0c\x86",
                b"cnumpy\ndtype\nq\x08U\x02u1K\x00K\x01\x87Rq\x09",
                b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
                b"\x89T" + struct.pack("<I", len(pixels)) + pixels + b"tb",
                b"U\x0bbatch_labelq\x0aU\x15training batch 1 of 5q\x0bu.",
            ]
        )


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(file: Path, files: Mapping[str, bytes], folder: str) -> Path:
    with tarfile.open(file, "w:gz", compresslevel=1) as tar:
        entry = tarfile.TarInfo(folder)
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file


def small_files(pictures: Pictures, binary: bool = False) -> dict[str, bytes]:
    """Return the six files with as many pictures each as there are."""
    ending, writer = (".bin", as_records) if binary else ("", as_pickle)
    return {b + ending: writer(turned(pictures, n)) for n, b in enumerate(BATCHES)}


def prepare_small(source: Path, output: Path, images_a_file: int = 4) -> list[str]:
    told: list[str] = []
    with writing(output, "cifar10") as writer:
        cifar10.prepare_batches(source, writer, told.append, images_a_file)
    return told


def check_prepared(file: Path, pictures: Pictures) -> None:
    """Check a file that was made of `pictures`, turned by the number of their file."""
    store = open_store("cifar10", str(file))
    count = len(pictures.labels)
    images = np.concatenate([read(store["train/images"]), read(store["test/images"])])
    labels = np.concatenate([read(store["train/labels"]), read(store["test/labels"])])
    assert images.shape == (6 * count, 3, 32, 32)
    assert images.dtype == np.uint8
    for number in range(6):
        expected = turned(pictures, number)
        part = slice(number * count, (number + 1) * count)
        assert np.array_equal(images[part].transpose(0, 2, 3, 1), expected.pixels)
        assert labels[part].tolist() == expected.labels
    scaled = pictures.pixels / 255.0  # turning leaves mean and deviation as they are
    mean, deviation = store.attributes["mean"], store.attributes["deviation"]
    np.testing.assert_allclose(mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(deviation, scaled.std(axis=(0, 1, 2)), rtol=1e-9)
    assert store.attributes["published"] == 0


# Round trips --------------------------------------------------------------------------------------


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_both_forms_give_the_same_pixels_and_labels(
    genuine: Pictures, tmp_path: Path, binary: bool, packed: bool
) -> None:
    form = "cifar-10-batches-bin" if binary else "cifar-10-batches-py"
    files = small_files(genuine, binary)
    files |= {"readme.html": b"<p>", "batches.meta": b"never read"}
    if packed:
        source = write_archive(tmp_path / "mine.tar.gz", files, form)
    else:
        source = write_folder(tmp_path / "mine", files)
    told = prepare_small(source, tmp_path / "cifar10.h5", 20)
    assert told[0].startswith(f"{form}: 100 training and 20 test images")
    check_prepared(tmp_path / "cifar10.h5", genuine)


def test_pickles_of_python_2_are_read(genuine: Pictures, tmp_path: Path) -> None:
    """The stand-in for the published files is what another reader takes for a batch, too."""
    content = Python2(genuine).content
    wanted = pickle.loads(content, encoding="bytes")
    assert wanted[b"labels"] == genuine.labels
    files = {b: Python2(turned(genuine, n)).content for n, b in enumerate(BATCHES)}
    prepare_small(write_folder(tmp_path / "py", files), tmp_path / "cifar10.h5", 20)
    check_prepared(tmp_path / "cifar10.h5", genuine)


def test_files_with_the_published_sums_are_told_as_such(
    drawn: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hashlib

    files = small_files(drawn)
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(cifar10, "_PYTHON_MD5", sums)
    told = prepare_small(write_folder(tmp_path / "py", files), tmp_path / "cifar10.h5")
    assert told[0].endswith("test images, as published (MD5)")
    assert open_store("cifar10", str(tmp_path)).attributes["published"] == 1


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("key", [str, str.encode], ids=["str", "bytes"])
def test_pickles_of_python_3_are_read(
    drawn: Pictures, protocol: int, key: Callable[[str], Any]
) -> None:
    found = read_pickle(as_pickle(drawn, protocol, key))
    assert found["labels"] == drawn.labels
    assert found["filenames"] == [f"picture_{n}.png" for n in range(4)]
    pixels = found["data"].array().reshape(4, 3, 32, 32).transpose(0, 2, 3, 1)
    assert np.array_equal(pixels, drawn.pixels)


# What a pickle may hold, whatever is in it
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(value=PLAIN, protocol=st.sampled_from([2, 3, 4]))
def test_plain_values_come_back_from_any_pickle(value: Any, protocol: int) -> None:
    assert read_pickle(pickle.dumps(value, protocol)) == value


def test_arrays_by_column_come_back() -> None:
    array = np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    found = read_pickle(pickle.dumps(array, 2))
    assert isinstance(found, PickledArray)
    assert np.array_equal(found.array(), array)


@given(content=st.binary(max_size=300), start=st.sampled_from([b"", b"\x80\x02", b"\x80\x02}("]))
def test_any_bytes_end_in_a_value_or_in_one_kind_of_error(content: bytes, start: bytes) -> None:
    with suppress(NotPlain):
        read_pickle(start + content + b".")


# Hostile pickles ----------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of whatever it is given."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def array_pickle(shape: bytes, kind: bytes = b"U\x02u1", content: bytes = b"U\x01x") -> bytes:
    """Return a pickled dict whose "data" is an array of which the parts are given."""
    return b"".join(
        [
            b"\x80\x02}(U\x06labels]U\x04datacnumpy.core.multiarray\n_reconstruct\n",
            b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape,
            b"cnumpy\ndtype\n" + kind + b"K\x00K\x01\x87R(K\x03U\x01|NNNK\x00K\x00K\x00tb",
            b"\x89" + content + b"tbu.",
        ]
    )


NUMBER_2_31 = b"J" + struct.pack("<i", 2**31 - 1)
HOSTILE_PICKLES: dict[str, tuple[bytes, str]] = {
    "no pickle": (b"some text", "damaged|instruction"),
    "empty": (b"", "damaged"),
    "another value": (pickle.dumps([1, 2]), "no dict"),
    "no labels": (pickle.dumps({b"data": 1, b"fine_labels": 2}), "no dict"),
    "no array": (pickle.dumps({"data": [1], "labels": [1]}), "is no array"),
    "huge shape": (array_pickle(NUMBER_2_31 * 2 + b"\x86"), r"2147483647, 2147483647\] made of 1 "),
    "negative shape": (array_pickle(b"J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86"), "made of 1 bytes"),
    "no shape": (array_pickle(b")"), "made of 1 bytes"),
    "shape of texts": (array_pickle(b"U\x01xU\x01y\x86"), "a str where a int belongs"),
    "objects": (array_pickle(b"K\x01\x85", kind=b"U\x02O8"), "type 'O8', not 'u1'"),
    "floats": (array_pickle(b"K\x01\x85", kind=b"U\x02f4"), "type 'f4', not 'u1'"),
    "type of a name": (array_pickle(b"K\x01\x85", kind=b"cos\nsystem\n"), "_Name where a str"),
    "letters for bytes": (
        array_pickle(b"K\x01\x85", content=b"X\x03\0\0\0\xe2\x82\xac"),
        "made of letters",
    ),
    "array of nothing": (
        b"\x80\x02}(U\x06labels]U\x04datacnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\nK\x00\x85U\x01b\x87Ru.",
        "without shape",
    ),
    "bytes that are not there": (
        array_pickle(b"K\x01\x85", content=b"T\xff\xff\xff\x7fx"),
        "damag",
    ),
    "absurd place": (b"\x80\x02Nr\xff\xff\xff\x7fh\x01.", "damaged"),
    "empty stack": (b"\x80\x02.", "damaged"),
    "below a mark": (b"\x80\x02}(u0.", "instruction POP"),
    "into a mark": (b"\x80\x02N(\x85.", "more from its stack"),
    "half a pair": (b"\x80\x02}(U\x01xu.", "damaged"),
    "list as key": (b"\x80\x02}]Ns.", "a list where a str belongs"),
    "a call of a text": (b"\x80\x02U\x01x)R.", "a str where a _Name belongs"),
    "state of a name": (b"\x80\x02cos\nsystem\n}b.", "_Name where a PickledArray belongs"),
    "a class": (b"\x80\x02cnumpy\nndarray\n)\x81.", "instruction NEWOBJ"),
    "an instance": (b"(ios\nsystem\n.", "instruction INST"),
    "a registered class": (b"\x80\x02\x82\x01.", "instruction EXT1"),
    "outside": (b"\x80\x02U\x01xQ.", "instruction BINPERSID"),
    "encoding that is code": (
        pickle.dumps(Calls(__import__("_codecs").encode, "x", "rot13"), 2),
        r"would call _codecs\.encode",
    ),
    "too many": (b"\x80\x02" + b"N" * 200_001, "more than 200,000 instructions"),
}


@pytest.mark.parametrize("case", HOSTILE_PICKLES)
def test_hostile_pickles_are_refused(case: str, drawn: Pictures, tmp_path: Path) -> None:
    content, message = HOSTILE_PICKLES[case]
    files = small_files(drawn) | {"data_batch_3": content}
    source = write_folder(tmp_path / "cifar-10-batches-py", files)
    tracemalloc.start()
    with pytest.raises(InputError, match=rf"(?s)data_batch_3: not as .*{message}.*get the file"):
        prepare_small(source, tmp_path / "out.h5")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("where", ["alone", "in a list", "as data"])
def test_a_pickle_that_would_run_code_runs_none(
    drawn: Pictures, tmp_path: Path, protocol: int, where: str
) -> None:
    trace = tmp_path / "trace"
    for call in (Calls(open, str(trace), "w"), Calls(os.system, f"touch {trace}")):
        values: dict[str, Any] = {
            "alone": call,
            "in a list": {"labels": [call], "data": 1},
            "as data": {"labels": [], "data": call},
        }
        content = pickle.dumps(values[where], protocol)
        source = tmp_path / "cifar-10-batches-py"
        source.mkdir(exist_ok=True)
        for name, whole in (small_files(drawn) | {"test_batch": content}).items():
            (source / name).write_bytes(whole)
        with pytest.raises(InputError, match=r"test_batch: .*(would call|instruction)"):
            prepare_small(source, tmp_path / "out.h5")
        assert not trace.exists()
    pickle.loads(content)  # the bait works
    assert trace.exists()


def test_work_does_not_grow_with_what_a_pickle_repeats(drawn: Pictures) -> None:
    """Lists of lists of ..., each twice: 2 ** 20,000 in all, and all within 100,000 bytes."""
    doubling = b"".join(b"\x94h" + bytes([n % 256]) + b"\x86" for n in range(255))
    assert isinstance(read_pickle(b"\x80\x04)" + doubling + b"."), tuple)
    with pytest.raises(NotPlain, match="a tuple where a str belongs"):
        read_pickle(b"\x80\x04})" + doubling + b"Ns.")  # hashing it would never end
    with pytest.raises(NotPlain, match="a tuple where a str belongs"):
        read_pickle(b"\x80\x04cnumpy\ndtype\n)" + doubling + b"\x85R.")  # so would showing it


def test_truncated_pickles_are_refused(drawn: Pictures) -> None:
    content = as_pickle(drawn)
    for length in (*range(0, len(content) - 1, 97), len(content) - 1):
        with pytest.raises(NotPlain):
            read_pickle(content[:length])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], "3 labels, not .* and 4"),
        ([0, 1, 2, 10], "not whole numbers from 0 to 9"),
        ([0, 1, 2, -1], "not whole numbers from 0 to 9"),
        ([0, 1, 2, True], "not whole numbers from 0 to 9"),
        ([0, 1, 2, "3"], "not whole numbers from 0 to 9"),
    ],
    ids=str,
)
def test_wrong_labels_are_refused(
    drawn: Pictures, tmp_path: Path, labels: list[Any], message: str
) -> None:
    files = small_files(drawn) | {"data_batch_5": as_pickle(Pictures(drawn.pixels, labels))}
    with pytest.raises(InputError, match=f"data_batch_5: .*{message}"):
        prepare_small(write_folder(tmp_path / "py", files), tmp_path / "out.h5")


# Damaged records and folders ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-1], "12,291 bytes long, not 12,292, .* 4 records of 3,073"),
        (lambda content: content + b"x", "12,293 bytes long"),
        (lambda _: b"", "it is 0 bytes long"),
        (lambda content: b"\x0a" + content[1:], "label 10; they go from 0 to 9"),
    ],
    ids=["truncated", "longer", "empty", "label"],
)
def test_damaged_records_are_refused(
    drawn: Pictures, tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    files = small_files(drawn, binary=True)
    files["data_batch_2.bin"] = change(files["data_batch_2.bin"])
    source = write_folder(tmp_path / "bin", files)
    with pytest.raises(InputError, match=rf"bin/data_batch_2\.bin: .*{message}"):
        prepare_small(source, tmp_path / "out.h5")


def test_a_file_that_lacks_or_is_too_large_is_told(drawn: Pictures, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "py", small_files(drawn))
    (source / "test_batch").unlink()
    with pytest.raises(InputError, match="py/test_batch: no such file"):
        prepare_small(source, tmp_path / "out.h5")
    with open(source / "test_batch", "wb") as sparse:
        sparse.truncate(2**40)
    with pytest.raises(InputError, match=r"py/test_batch: .* more than 67,108,864 bytes"):
        prepare_small(source, tmp_path / "out.h5")
    with pytest.raises(InputError, match="py/batches: has neither data_batch_1 nor"):
        prepare_small(write_folder(source / "batches", {}), tmp_path / "out.h5")
    with pytest.raises(InputError, match="say where the original files are: --source"):
        prepare("cifar10", None, tmp_path / "out.h5", print)


def test_the_wrong_number_of_pictures_is_refused(drawn: Pictures, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "py", small_files(drawn))
    message = r"data_batch_1: .*shape \[4, 3072\] and 4 labels, not \[10000, 3072\] and 10,000"
    with pytest.raises(InputError, match=message):
        prepare("cifar10", source, tmp_path / "out.h5", print)


# Archives -----------------------------------------------------------------------------------------


def entry(name: str, **attributes: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(found, key, value)
    return found


PY = "cifar-10-batches-py"
HOSTILE_ENTRIES: dict[str, tuple[tarfile.TarInfo, str]] = {
    "out": (entry("../data_batch_1"), "is not in the folder"),
    "out of the folder": (entry(f"{PY}/../../x"), "is not in the folder"),
    "absolute": (entry(f"/{PY}/data_batch_1"), "is not in the folder"),
    "beside": (entry("x"), "is not in the folder"),
    "nowhere": (entry("."), "is not in the folder"),
    "symbolic link": (
        entry(f"{PY}/data_batch_1", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        "is a link",
    ),
    "hard link": (
        entry(f"{PY}/data_batch_1", type=tarfile.LNKTYPE, linkname=f"{PY}/x"),
        "is a link",
    ),
    "pipe": (entry(f"{PY}/data_batch_1", type=tarfile.FIFOTYPE), "no plain file"),
    "device": (entry(f"{PY}/data_batch_1", type=tarfile.CHRTYPE), "no plain file"),
    "huge": (entry(f"{PY}/data_batch_1", size=2**40), "declares 1,099,511,627,776 bytes"),
    "longer than the archive": (entry(f"{PY}/data_batch_1", size=10**7), "no whole .tar.gz"),
    "a link before": (entry(PY, type=tarfile.SYMTYPE, linkname="/tmp"), "is a link"),
}


@pytest.mark.parametrize("case", HOSTILE_ENTRIES)
def test_hostile_archives_are_refused(case: str, tmp_path: Path) -> None:
    hostile, message = HOSTILE_ENTRIES[case]
    file = tmp_path / "mine.tar.gz"
    header = hostile.tobuf(tarfile.GNU_FORMAT)
    file.write_bytes(gzip.compress(header + bytes(1024)))
    before = sorted(tmp_path.parent.rglob("*"))
    with pytest.raises(InputError, match=rf"mine\.tar\.gz: .*{message}"):
        prepare_small(file, tmp_path / "out.h5")
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_hostile_file_in_an_archive_is_named(drawn: Pictures, tmp_path: Path) -> None:
    files = small_files(drawn) | {"test_batch": pickle.dumps(Calls(os.system, "true"), 2)}
    file = write_archive(tmp_path / "mine.tar.gz", files, PY)
    with pytest.raises(InputError, match=rf"mine\.tar\.gz: {PY}/test_batch: .* would call posix"):
        prepare_small(file, tmp_path / "out.h5")


def test_archives_that_are_not_whole_are_refused(drawn: Pictures, tmp_path: Path) -> None:
    files = small_files(drawn)
    content = write_archive(tmp_path / "whole.tar.gz", files, PY).read_bytes()
    lacking = {name: files[name] for name in BATCHES[1:]}
    other = write_archive(tmp_path / "lacking.tar.gz", lacking, PY).read_bytes()
    twice = tmp_path / "twice.tar.gz"
    with tarfile.open(twice, "w:gz") as tar:
        for _ in range(2):
            tar.addfile(entry(f"{PY}/data_batch_1"))
    many = tmp_path / "many.tar.gz"
    with tarfile.open(many, "w:gz") as tar:
        for number in range(101):
            tar.addfile(entry(f"{PY}/{number}"))
    cases = {
        "cut.tar.gz": (content[: len(content) // 2], "no whole .tar.gz"),
        "text.tar.gz": (b"no archive", "no whole .tar.gz"),
        "gzip.tar.gz": (gzip.compress(b"no archive" * 100), "no whole .tar.gz"),
        "empty.tar.gz": (gzip.compress(b""), "no whole .tar.gz"),
        "lacks.tar.gz": (other, "lacks some of data_batch_1 to 5"),
        "twice.tar.gz": (twice.read_bytes(), f"has {PY}/data_batch_1 twice"),
        "many.tar.gz": (many.read_bytes(), "more than 100 entries"),
        "cifar-10-python.tar.gz": (content, "MD5 sum is [0-9a-f]{32}, not c58f3010.* as published"),
        "cifar-10-binary.tar.gz": (content, "MD5 sum is [0-9a-f]{32}, not c32a1d4a.* as published"),
    }
    for name, (changed, message) in cases.items():
        (tmp_path / name).write_bytes(changed)
        with pytest.raises(InputError, match=rf"{name}: .*{message}.*get the file again$"):
            prepare_small(tmp_path / name, tmp_path / "out.h5")


def test_an_archive_is_unpacked_no_further_than_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header of a long name declares 100 MB, and the archive has them, all zeros."""
    monkeypatch.setattr(cifar10, "_MAX_ARCHIVE_BYTES", 1_000_000)
    long_name = entry("././@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=100_000_000)
    file = tmp_path / "bomb.tar.gz"
    header = long_name.tobuf(tarfile.GNU_FORMAT)
    file.write_bytes(gzip.compress(header + bytes(100_000_000), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"bomb\.tar\.gz: .*unpacks to more than 1,000,000 bytes"):
        prepare_small(file, tmp_path / "out.h5")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000
