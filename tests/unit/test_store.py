"""A prepared file appears whole or not at all, and no damage passes for data."""

from pathlib import Path

import h5py
import numpy as np
import pytest

import esgd_hpc.data.store as store_module
from esgd_hpc.data.store import data_file, open_store, read, writing
from esgd_hpc.errors import InputError, RunError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "toy.h5"
    with writing(path, "toy") as writer:
        writer.append("train/images", np.arange(12, dtype=np.uint8).reshape(3, 2, 2))
        writer.append("train/images", np.full((2, 2, 2), 7, dtype=np.uint8))
        writer.append("train/labels", np.arange(5))
        writer.append("train/none", np.empty((0, 3), dtype=np.float32))
        writer.note(classes=["a", "b"], mean=0.5, made_from="here")
    return path


def test_what_is_written_is_read(file: Path) -> None:
    store = open_store("toy", str(file))
    assert not store.is_missing
    assert store.attributes["classes"] == ["a", "b"]
    assert (store.attributes["mean"], store.attributes["made_from"]) == (0.5, "here")
    images = store["train/images"]
    assert (images.shape, images.dtype, images.num_bytes) == ((5, 2, 2), np.dtype("u1"), 20)
    found = read(images)
    assert found[:3].ravel().tolist() == list(range(12))
    assert (found[3:] == 7).all()
    assert read(store["train/labels"]).tolist() == [0, 1, 2, 3, 4]
    assert read(store["train/none"]).shape == (0, 3)
    assert [p.name for p in file.parent.iterdir()] == ["toy.h5"]


def test_some_rows_are_read_and_all_are_checked(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_WINDOW_BYTES", 8)  # two images, or one label
    store = open_store("toy", str(file))
    images, labels = store["train/images"], store["train/labels"]
    for start, stop in ((0, 5), (0, 2), (1, 4), (3, 5), (4, 5), (2, 2)):
        part = images.rows(start, stop)
        assert part.num_bytes == 4 * (stop - start)
        assert read(part).tolist() == read(images)[start:stop].tolist()
        assert read(labels.rows(start, stop)).tolist() == list(range(start, stop))
    assert read(labels.rows(1, 5).rows(1, 3)).tolist() == [2, 3]
    with h5py.File(file, "r+") as opened:
        opened["train/labels"][4] = 9
    with pytest.raises(InputError, match=r"train/labels is damaged"):
        read(labels.rows(0, 2))


def test_a_name_that_the_file_lacks_is_told_with_those_it_has(file: Path) -> None:
    with pytest.raises(InputError, match=r"has no test/images; it has train/images"):
        open_store("toy", str(file))["test/images"]


def test_a_missing_file_is_an_error_only_when_it_is_read(tmp_path: Path) -> None:
    store = open_store("toy", str(tmp_path))
    assert store.is_missing
    assert store["train/anything"].shape is None
    with pytest.raises(InputError, match=r"toy\.h5: no such file.*esgd data prepare toy"):
        read(store["train/anything"])


def test_where_a_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESGD_DATA", raising=False)
    assert data_file("toy") == Path("data/toy.h5")
    monkeypatch.setenv("ESGD_DATA", str(tmp_path))
    assert data_file("toy") == tmp_path / "toy.h5"
    assert data_file("toy", "elsewhere") == Path("elsewhere/toy.h5")
    assert data_file("toy", "elsewhere/other.h5") == Path("elsewhere/other.h5")


def test_damaged_bytes_are_found(file: Path) -> None:
    with h5py.File(file, "r+") as opened:
        opened["train/labels"][2] = 9
    with pytest.raises(InputError, match=r"toy\.h5: train/labels is damaged: its CRC-32"):
        read(open_store("toy", str(file))["train/labels"])


def test_a_truncated_file_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"toy\.h5"):
        read(open_store("toy", str(file))["train/labels"])


def test_another_data_set_and_other_files_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match='is no prepared data set "other"'):
        open_store("other", str(file))
    text = tmp_path / "text.h5"
    text.write_text("no HDF5")
    with pytest.raises(InputError, match=r"text\.h5: cannot be read as a prepared data set"):
        open_store("toy", str(text))


@pytest.mark.parametrize("kind", ["external", "virtual", "text", "unsummed"])
def test_datasets_that_we_do_not_write_are_refused(file: Path, kind: str) -> None:
    """External and virtual ones would read other files than the one that is named."""
    with h5py.File(file, "r+") as opened:
        if kind == "external":
            external = [("/etc/hostname", 0, 4)]
            opened.create_dataset("x", (4,), "u1", external=external).attrs["crc32"] = 0
        elif kind == "virtual":
            layout = h5py.VirtualLayout((5,), "i8")
            layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (5,))
            opened.create_virtual_dataset("x", layout).attrs["crc32"] = 0
        elif kind == "text":
            opened.create_dataset("x", data=["text"]).attrs["crc32"] = 0
        else:
            opened.create_dataset("x", data=[1])
    with pytest.raises(InputError, match=r"x was not written by `esgd data prepare`"):
        open_store("toy", str(file))


def test_a_preparation_that_fails_leaves_the_old_file(file: Path) -> None:
    before = file.read_bytes()

    def fail() -> None:
        with writing(file, "toy") as writer:
            writer.append("train/labels", [1])
            raise InputError("the original is damaged")

    with pytest.raises(InputError, match="the original is damaged"):
        fail()
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == ["toy.h5"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match=r"toy\.h5: cannot be written"),
        writing(tmp_path / "file" / "toy.h5", "toy"),
    ):
        pass
