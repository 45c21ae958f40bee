"""Kaldi's tables are read as kaldiio wrote them, hostile ones are refused, and data is prepared."""

import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from esgd_hpc.cli import main
from esgd_hpc.data.kaldi import (
    Entry,
    read_labels,
    read_matrix,
    read_vector,
    table,
    write_matrices,
)
from esgd_hpc.data.speech_store import open_speech, utterance_ids
from esgd_hpc.data.store import read
from esgd_hpc.errors import InputError, RunError

kaldiio = pytest.importorskip("kaldiio", reason="kaldiio is not installed")
pytest.importorskip("kaldi_native_io", reason="kaldi-native-io is not installed")

Array = npt.NDArray[Any]

RANDOM = np.random.default_rng(7)
MATRICES = {f"utt{n}": RANDOM.normal(size=(n, 5)).astype(np.float32) for n in (1, 12, 30)}
LABELS = {f"utt{n}": RANDOM.integers(0, 9, n).astype(np.int32) for n in (1, 12, 30)}

FORMS: dict[str, dict[str, Any]] = {
    "binary": {},
    "text": {"text": True},
    **{f"compressed {method}": {"compression_method": method} for method in range(1, 8)},
}
"""By kaldiio: 1 and 2 give CM (or CM2), 3 and 4 CM2, 5 to 7 CM3."""


def entries(folder: Path, name: str) -> dict[str, Entry]:
    found = table(folder, folder, name)
    assert found is not None
    return found


# Reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["scp", "ark"])
@pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float", "double"])
@pytest.mark.parametrize("form", FORMS)
def test_matrices_are_read_as_another_reader_reads_them(
    tmp_path: Path, form: str, kind: type, by: str
) -> None:
    written: dict[str, Array] = {key: matrix.astype(kind) for key, matrix in MATRICES.items()}
    archive, script = tmp_path / "feats.ark", tmp_path / "feats.scp"
    kaldiio.save_ark(str(archive), written, scp=str(script), **FORMS[form])
    expected = dict(kaldiio.load_scp(str(script)))
    if by == "ark":
        script.unlink()
    found = entries(tmp_path, "feats")
    assert list(found) == list(MATRICES)
    for key, entry in found.items():
        matrix = read_matrix(entry)
        assert matrix.dtype == np.float32
        np.testing.assert_allclose(matrix, expected[key], rtol=1e-5, atol=1e-6)


def test_compression_gives_each_of_its_types(tmp_path: Path) -> None:
    """Or the test above would not see all of them."""
    kinds = set()
    for form in FORMS.values():
        kaldiio.save_ark(str(tmp_path / "a"), MATRICES, **form)
        kinds |= {k for k in (b"BFM ", b"BCM ", b"BCM2 ", b"BCM3 ") if k in read_bytes(tmp_path)}
    assert kinds == {b"BFM ", b"BCM ", b"BCM2 ", b"BCM3 "}


def read_bytes(folder: Path) -> bytes:
    return (folder / "a").read_bytes()


@pytest.mark.parametrize("by", ["scp", "ark"])
@pytest.mark.parametrize("text", [False, True])
def test_labels_and_vectors(tmp_path: Path, text: bool, by: str) -> None:
    vectors = {"a": MATRICES["utt1"][0], "b": MATRICES["utt12"][1].astype(np.float64)}
    for name, written in (("ali", LABELS), ("ivectors", vectors)):
        script = tmp_path / f"{name}.scp"
        kaldiio.save_ark(str(tmp_path / f"{name}.ark"), written, scp=str(script), text=text)
        if by == "ark":
            script.unlink()
    for key, entry in entries(tmp_path, "ali").items():
        np.testing.assert_array_equal(read_labels(entry), LABELS[key])
    for key, entry in entries(tmp_path, "ivectors").items():
        np.testing.assert_allclose(read_vector(entry), vectors[key], rtol=1e-6)


@pytest.mark.parametrize("text", [False, True])
def test_online_ivectors_are_averaged(tmp_path: Path, text: bool) -> None:
    kaldiio.save_ark(str(tmp_path / "ivectors.ark"), MATRICES, text=text)
    for key, entry in entries(tmp_path, "ivectors").items():
        np.testing.assert_allclose(read_vector(entry), MATRICES[key].mean(axis=0), rtol=1e-5)


def test_labels_in_kaldis_own_text(tmp_path: Path) -> None:
    (tmp_path / "ali.ark").write_text("a 1 2 3 \nb 4 \n")
    found = entries(tmp_path, "ali")
    assert [read_labels(entry).tolist() for entry in found.values()] == [[1, 2, 3], [4]]


def test_archives_of_several_jobs_are_one_table(tmp_path: Path) -> None:
    for number, (key, labels) in enumerate(LABELS.items(), 1):
        kaldiio.save_ark(str(tmp_path / f"ali.{number}.ark"), {key: labels})
    assert set(entries(tmp_path, "ali")) == set(LABELS)
    kaldiio.save_ark(str(tmp_path / "ali.4.ark"), {"utt12": LABELS["utt12"]})
    with pytest.raises(InputError, match=r"ali\.4\.ark: utt12: there twice, also in .*ali\.2\.ark"):
        table(tmp_path, tmp_path, "ali")


def test_paths_start_at_the_script_or_at_the_folder(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "arks").mkdir()
    kaldiio.save_ark(str(tmp_path / "arks" / "x.ark"), {"a": MATRICES["utt1"]})
    for path in ("../arks/x.ark:2", "arks/x.ark:2", f"{tmp_path}/arks/x.ark:2"):
        (tmp_path / "train" / "feats.scp").write_text(f"a {path}\n")
        found = table(tmp_path, tmp_path / "train", "feats")
        assert found is not None
        np.testing.assert_array_equal(read_matrix(found["a"]), MATRICES["utt1"])


# Hostile files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place", ["touch {0}/ran |", "|cat > {0}/ran", "touch {0}/ran|", "| touch {0}/ran"]
)
def test_commands_are_never_run(tmp_path: Path, place: str) -> None:
    (tmp_path / "feats.scp").write_text(f"a {place.format(tmp_path)}\n")
    with pytest.raises(InputError, match=r"feats\.scp:1: .*names a command, and none is ever run"):
        table(tmp_path, tmp_path, "feats")
    assert not (tmp_path / "ran").exists()


def test_a_folder_whose_name_is_a_command_is_only_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "touch ran |"
    folder.mkdir()
    kaldiio.save_ark(str(tmp_path / "feats.ark"), MATRICES)
    (tmp_path / "feats.ark").rename(folder / "feats.ark")
    for key, entry in entries(folder, "feats").items():
        np.testing.assert_array_equal(read_matrix(entry), MATRICES[key])
    assert not Path("ran").exists()


@pytest.mark.parametrize("how", ["absolute", "dots", "link"])
def test_paths_that_leave_the_folder_are_refused(tmp_path: Path, how: str) -> None:
    root = tmp_path / "source"
    root.mkdir()
    kaldiio.save_ark(str(tmp_path / "x.ark"), MATRICES)
    path = {"absolute": f"{tmp_path}/x.ark", "dots": "../x.ark", "link": "feats.1.ark"}[how]
    if how == "link":
        (root / path).symlink_to(tmp_path / "x.ark")
    else:
        (root / "feats.scp").write_text(f"utt1 {path}:5\n")
    with pytest.raises(InputError, match=r"which is not in .*source; only files of that folder"):
        table(root, root, "feats")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("", "expected a name and a file"),
        ("-", "expected a name and a file"),
        ("x.ark:5[0:3]", "names a part of a matrix"),
        ("none.ark:5", "no such file"),
        (".", "no such file"),
    ],
)
def test_lines_that_name_no_matrix(tmp_path: Path, place: str, message: str) -> None:
    kaldiio.save_ark(str(tmp_path / "x.ark"), MATRICES)
    (tmp_path / "feats.scp").write_text(f"a {place}\n")
    with pytest.raises(InputError, match=message):
        table(tmp_path, tmp_path, "feats")


def test_scripts_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "feats.scp").write_bytes(b"a x\xff\n")
    with pytest.raises(InputError, match="cannot be read as text"):
        table(tmp_path, tmp_path, "feats")


def header(kind: bytes, *sizes: int) -> bytes:
    return b"\0B" + kind + b" " + b"".join(b"\4" + struct.pack("<i", size) for size in sizes)


def compressed(kind: bytes, rows: int, columns: int) -> bytes:
    return b"\0B" + kind + b" " + struct.pack("<ffii", 0.0, 1.0, rows, columns)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(b"FM", 2**31 - 1, 1), "declares 85899346.* more than the file has"),
        (header(b"FM", 2**31 - 1, 2**31 - 1), "no matrix"),
        (header(b"DM", 2**20, 2**10), "declares .* more than the file has"),
        (header(b"FM", 2**31 - 1, 0), "no matrix"),
        (header(b"FM", -1, -1), "no matrix"),
        (header(b"FV", 2**31 - 1), "declares"),
        (compressed(b"CM", 2**20, 2**10), "declares"),
        (compressed(b"CM2", 2**20, 2**10), "declares"),
        (compressed(b"CM3", 2**20, 2**10), "declares"),
        (b"\0B\4" + struct.pack("<i", 2**31 - 1), "declares"),
        (b"\0B\4" + struct.pack("<i", -5), "no matrix"),
        (header(b"SM", 3), "no matrix"),
        (header(b"FM", 3)[:6], "no matrix"),
        (b"\0B", "no matrix"),
        (b" [ 1 2 3\n", "no closing bracket"),
    ],
)
def test_headers_that_declare_more_than_there_is(
    tmp_path: Path, content: bytes, message: str
) -> None:
    """Nothing of that size may be allocated: the library is not asked."""
    (tmp_path / "feats.ark").write_bytes(b"a " + content)
    (tmp_path / "feats.scp").write_text("a feats.ark:2\n")
    entry = entries(tmp_path, "feats")["a"]
    for reader in (read_matrix, read_vector, read_labels):
        with pytest.raises(InputError, match=message):
            reader(entry)
    (tmp_path / "feats.scp").unlink()
    with pytest.raises(InputError, match=message):
        table(tmp_path, tmp_path, "feats")


def test_truncated_archives_and_wrong_places(tmp_path: Path) -> None:
    file, script = tmp_path / "feats.ark", tmp_path / "feats.scp"
    kaldiio.save_ark(str(file), {"a": MATRICES["utt30"]}, scp=str(script))
    whole = file.read_bytes()
    for place, message in ((len(whole), "the file has ended"), (3, "damaged|no closing|no matrix")):
        script.write_text(f"a feats.ark:{place}\n")
        with pytest.raises(InputError, match=message):
            read_matrix(entries(tmp_path, "feats")["a"])
    script.write_text("a feats.ark:2\n")
    file.write_bytes(whole[:-1])
    with pytest.raises(InputError, match="1 more than the file has; it is truncated"):
        read_matrix(entries(tmp_path, "feats")["a"])


@pytest.mark.parametrize(
    ("content", "reader", "message"),
    [
        (b"\0B\4\1\0\0\0\3\0\0\0\0", read_labels, "four bytes"),
        (b"1 2.5 3\n", read_labels, "whole numbers"),
        (b"1 99999999999 3\n", read_labels, "whole numbers"),
        (b" [ 1 2\n 3 ]\n", read_matrix, "damaged"),
        (b" [ 1 x ]\n", read_matrix, "damaged"),
        (header(b"FV", 0), read_matrix, "expected a matrix, found FV"),
        (header(b"FM", 0, 0), read_labels, "expected labels, found FM"),
        (b"\0B\4\0\0\0\0", read_vector, "expected a vector, found labels"),
    ],
)
def test_entries_of_another_kind(
    tmp_path: Path, content: bytes, reader: Callable[[Entry], Any], message: str
) -> None:
    (tmp_path / "x.ark").write_bytes(b"a " + content)
    with pytest.raises(InputError, match=message):
        reader(entries(tmp_path, "x")["a"])


# Preparing ----------------------------------------------------------------------------------------

STATES, WIDTH = 6, 4


class Source:
    """A folder as `esgd data prepare` takes it, in memory until it is written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        random = np.random.default_rng(3)
        self.features: dict[str, dict[str, Array]] = {}
        self.labels: dict[str, dict[str, Array]] = {}
        for split, count in (("train", 20), ("dev", 3), ("test", 2)):
            keys = [f"spk{n % 2}-{split}{n}" for n in range(count)]
            lengths = random.integers(5, 40, count)
            self.features[split] = {
                key: random.normal(2.0, 3.0, (n, WIDTH)).astype(np.float32)
                for key, n in zip(keys, lengths, strict=True)
            }
            self.labels[split] = {
                key: random.integers(0, STATES - 1, len(x)).astype(np.int32)
                for key, x in self.features[split].items()
            }

    def write(self) -> None:
        self.root.mkdir(exist_ok=True)
        (self.root / "num_pdfs").write_text(f"{STATES}\n")
        for split, features in self.features.items():
            folder = self.root / split
            folder.mkdir(exist_ok=True)
            archive, script = folder / "raw.ark", folder / "feats.scp"
            kaldiio.save_ark(str(archive), features, scp=str(script))
            if self.labels[split]:
                kaldiio.save_ark(str(folder / "ali.ark"), self.labels[split])
            (folder / "utt2spk").write_text("".join(f"{k} {k[:4]}\n" for k in features))

    def prepare(self, name: str = "bn50") -> int:
        self.write()
        return self.prepare_as_written(name)

    def prepare_as_written(self, name: str = "bn50") -> int:
        output = str(self.root.parent)
        return main(["data", "prepare", name, "--source", str(self.root), "--output", output])


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path / "source")


def test_prepared_data(source: Source, capsys: pytest.CaptureFixture[str]) -> None:
    assert source.prepare() == 0
    assert "train: " in capsys.readouterr().out
    store = open_speech("bn50", str(source.root.parent))
    everything = np.concatenate([*source.features["train"].values()]).astype(np.float64)
    mean, deviation = everything.mean(axis=0), everything.std(axis=0)
    for split, name in (("train", "train"), ("validation", "dev"), ("test", "test")):
        wanted = np.concatenate([*source.features[name].values()])
        features = read(store[f"{split}/features"])
        np.testing.assert_allclose(features, (wanted - mean) / deviation, rtol=1e-4, atol=1e-5)
        labels = np.concatenate([*source.labels[name].values()])
        np.testing.assert_array_equal(read(store[f"{split}/labels"]), labels)
        ends = np.cumsum([len(x) for x in source.features[name].values()])
        bounds = np.stack([[0, *ends[:-1]], ends], axis=1)
        np.testing.assert_array_equal(read(store[f"{split}/utterances"]), bounds)
        assert utterance_ids(store, split) == list(source.features[name])
    counts = np.bincount(read(store["train/labels"]), minlength=STATES)
    assert counts[STATES - 1] == 0  # a state without frames counts as one frame
    priors = np.log(np.maximum(counts, 1) / counts.sum())
    np.testing.assert_allclose(read(store["log_priors"]), priors, rtol=1e-6)
    assert store.attributes["num_states"] == STATES


@pytest.mark.parametrize("scales", [False, True])
def test_statistics_of_speakers_and_ivectors(source: Source, scales: bool) -> None:
    source.write()
    ivectors = {"spk0": np.arange(3, dtype=np.float32), "spk1": -np.ones(3, dtype=np.float32)}
    wanted: dict[str, list[Array]] = {}
    for split, features in source.features.items():
        statistics = {}
        for speaker in {key[:4] for key in features}:
            own = np.concatenate([x for k, x in features.items() if k[:4] == speaker])
            own = own.astype(np.float64)
            sums = np.stack([own.sum(axis=0), np.square(own).sum(axis=0)])
            statistics[speaker] = np.concatenate([sums, [[len(own)], [0.0]]], axis=1)
            for key in features:
                if key[:4] == speaker:
                    features[key] = features[key] - own.mean(axis=0)
                    if scales:
                        features[key] = features[key] / own.std(axis=0)
        wanted[split] = list(features.values())
        folder = source.root / split
        kaldiio.save_ark(str(folder / "cmvn.ark"), statistics)
        kaldiio.save_ark(str(folder / "ivectors.ark"), ivectors)
        if scales:
            (folder / "cmvn_opts").write_text("--norm-means=true --norm-vars=true\n")
    assert source.prepare_as_written("swb300") == 0
    store = open_speech("swb300", str(source.root.parent))
    deviation = np.concatenate(wanted["train"]).std(axis=0)
    np.testing.assert_allclose(
        read(store["test/features"]), np.concatenate(wanted["test"]) / deviation, atol=1e-4
    )
    np.testing.assert_array_equal(
        read(store["test/ivectors"]), np.stack([ivectors["spk0"], ivectors["spk1"]])
    )


def test_a_test_folder_may_be_missing_or_without_alignments(source: Source) -> None:
    source.labels["test"] = {}
    assert source.prepare() == 0
    store = open_speech("bn50", str(source.root.parent))
    assert store.has("test/features")
    assert not store.has("test/labels")
    del source.features["test"]
    source.root = source.root.parent / "other"
    assert source.prepare() == 0
    assert not open_speech("bn50", str(source.root.parent)).has("test/features")


def test_few_utterances_without_their_alignment_are_left_out(
    source: Source, capsys: pytest.CaptureFixture[str]
) -> None:
    del source.labels["train"]["spk0-train4"]
    source.labels["train"]["spk1-train7"] = source.labels["train"]["spk1-train7"][:-1]
    assert source.prepare() == 0
    assert "in 18 of 20 utterances" in capsys.readouterr().out
    del source.labels["train"]["spk0-train6"]
    assert source.prepare() == 2
    assert "3 of 20 utterances have no alignment of their length" in capsys.readouterr().err


def nan(source: Source) -> None:
    source.features["train"]["spk0-train2"][1, 1] = np.nan


def another_width(source: Source) -> None:
    source.features["train"]["spk0-train2"] = np.zeros((9, 3), dtype=np.float32)
    source.labels["train"]["spk0-train2"] = np.zeros(9, dtype=np.int32)


def another_width_of_dev(source: Source) -> None:
    source.features["dev"] = {k: x[:, :3] for k, x in source.features["dev"].items()}


def label_too_high(source: Source) -> None:
    source.labels["dev"]["spk0-dev2"][3] = STATES


def no_alignments(source: Source) -> None:
    source.labels["dev"] = {}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (nan, "spk0-train2: features with NaN or infinity"),
        (another_width, r"spk0-train2: features of shape \[9, 3\]; others have 4"),
        (another_width_of_dev, r"spk0-dev0: features of shape \[\d+, 3\]; others have 4"),
        (label_too_high, "spk0-dev2: labels from . to 6; with 6 states they go from 0 to 5"),
        (no_alignments, "dev: has neither ali.scp nor ali.ark; .*ali-to-pdf"),
    ],
)
def test_data_that_cannot_be_used(
    source: Source,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Source], None],
    message: str,
) -> None:
    spoil(source)
    assert source.prepare() == 2
    err = capsys.readouterr().err
    assert err.startswith("esgd: error: ")
    assert err.count("\n") == 1
    assert re.search(message, err), err
    assert not [*source.root.parent.glob("*.h5*")]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("num_pdfs", None, "num_pdfs: no such file"),
        ("num_pdfs", "many\n", "expected one number"),
        ("num_pdfs", "0\n", "expected one number"),
        ("train/utt2spk", "a b c\n", "utt2spk:1: 'a b c': expected an utterance and its speaker"),
        ("train/cmvn_opts", "--reverse=true\n", "--reverse=true: not applied here"),
        ("train/cmvn.ark", "nobody  [ 1 2 ]\n", "no cmvn for utterance spk0-train0"),
        ("train/cmvn.ark", "spk0  [\n 1 2\n 3 4 ]\nspk1  [ 1 ]\n", r"statistics of shape \[2, 2\]"),
        ("dev/ivectors.ark", "spk0  [ 1 nan ]\nspk1  [ 1 2 ]\n", "i-vector with NaN"),
        ("dev/feats.scp", "", "neither feats.scp nor feats.ark with an utterance"),
    ],
)
def test_files_that_do_not_fit(
    source: Source,
    capsys: pytest.CaptureFixture[str],
    file: str,
    text: str | None,
    message: str,
) -> None:
    source.write()
    if text is None:
        (source.root / file).unlink()
    else:
        (source.root / file).write_text(text)
    assert source.prepare_as_written() == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert re.search(message, err), err


def test_without_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "prepare", "bn50", "--output", str(tmp_path)]) == 2
    assert "bn50 needs a folder with num_pdfs, train, dev and test" in capsys.readouterr().err


def test_without_the_library(
    source: Source, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "kaldi_native_io", None)
    assert source.prepare() == 2
    assert 'pip install "esgd-hpc[data]"' in capsys.readouterr().err


# Writing ------------------------------------------------------------------------------------------


def test_another_reader_reads_what_is_written(tmp_path: Path) -> None:
    script = write_matrices(tmp_path / "new", "test", MATRICES.items(), 0)
    assert sorted(f.name for f in script.parent.iterdir()) == ["test.ark", "test.scp"]
    found = kaldiio.load_scp(str(script))
    assert list(found) == list(MATRICES)
    for key, matrix in MATRICES.items():
        np.testing.assert_array_equal(found[key], matrix)


@pytest.mark.parametrize("name", ["a b", "a,b", "touch ran |", "a\nb"])
def test_names_that_mean_something_to_kaldi_are_not_written_to(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="choose a path without them"):
        write_matrices(tmp_path / name, "test", MATRICES.items(), 0)
    assert not [*tmp_path.iterdir()]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_matrices(tmp_path / "file", "test", MATRICES.items(), 0)
    with pytest.raises(RunError, match=r"needs .* MiB and the disk has"):
        write_matrices(tmp_path, "test", MATRICES.items(), 2**60)


def test_what_was_there_stays_where_writing_fails(tmp_path: Path) -> None:
    write_matrices(tmp_path, "test", MATRICES.items(), 0)

    def broken() -> Any:
        yield "a", MATRICES["utt1"]
        raise MemoryError

    with pytest.raises(MemoryError):
        write_matrices(tmp_path, "test", broken(), 0)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["test.ark", "test.scp"]
    assert len(dict(kaldiio.load_scp(str(tmp_path / "test.scp")))) == len(MATRICES)
