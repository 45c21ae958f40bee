"""How CIFAR-10 is read from its two published forms, neither of which is trusted.

    cifar-10-batches-py   pickled dicts: "data" uint8 [10000, 3072], "labels" a list
    cifar-10-batches-bin  records of 3,073 bytes: a label, then 1,024 red, green and blue each

Six files of 10,000 images each; rows of pixels from the top, one colour after another. Their folder
may still be in the .tar.gz it came in, which is read without unpacking it.
A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from esgd_hpc.data.pickled import NotPlain, PickledArray, read_pickle
from esgd_hpc.data.prepare import Say, StoreWriter
from esgd_hpc.data.prepare.pixels import PixelStatistics
from esgd_hpc.errors import InputError

_TRAINING = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST = "test_batch"
_IMAGES_A_FILE = 10_000
_SHAPE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_MAX_LABEL = 9
_MAX_FILE_BYTES = 2**26
"""The files are 31 MB; protocol 2 of Python 3 makes 46 of them."""
_MAX_ARCHIVE_BYTES = 2**29
"""Of an archive, when decompressed: the originals are 186 MB."""
_MAX_MEMBERS = 100

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class _Form(NamedTuple):
    """One of the two forms, with what its author's page says of it."""

    folder: str
    suffix: str
    archive: str
    archive_md5: str
    read: Callable[[bytes, int], tuple[Images, Labels]]

    def file(self, batch: str) -> str:
        return batch + self.suffix


class _Originals(NamedTuple):
    """What was found at the source."""

    form: _Form
    files: Mapping[str, bytes]
    """By their names in the folder."""
    place: str
    """What stands before these names in messages."""
    published: bool
    """Whether MD5 sums show that these are the published files."""


def prepare(name: str, source: Path | None, writer: StoreWriter, say: Say) -> None:
    """Write train/ and test/ images, uint8 [n, 3, 32, 32], and labels, int64 [n].

    Raises InputError for files that are missing, damaged or hostile.
    """
    prepare_batches(source, writer, say, _IMAGES_A_FILE)


def prepare_batches(source: Path | None, writer: StoreWriter, say: Say, images_a_file: int) -> None:
    """Do what `prepare` does for files of so many images each."""
    if source is None:
        raise InputError(
            "cifar10: say where the original files are: --source with the folder"
            " cifar-10-batches-py or cifar-10-batches-bin, or the .tar.gz it came in"
        )
    found = _in_folder(source) if source.is_dir() else _in_archive(source)
    statistics = PixelStatistics()
    for batch in (*_TRAINING, _TEST):
        file = found.form.file(batch)
        try:
            images, labels = found.form.read(found.files[file], images_a_file)
        except NotPlain as error:
            raise _damaged(f"{found.place}{file}", str(error)) from None
        split = "test" if batch == _TEST else "train"
        writer.append(f"{split}/images", images)
        writer.append(f"{split}/labels", labels)
        if split == "train":
            statistics.add(images)
    writer.note(form=found.form.folder, published=found.published, **statistics.attributes())
    sums = "as" if found.published else "not known to be"
    say(
        f"{found.form.folder}: {5 * images_a_file:,} training and {images_a_file:,} test images,"
        f" {sums} published (MD5)"
    )


# One file -----------------------------------------------------------------------------------------


def _of_pickle(content: bytes, num_images: int) -> tuple[Images, Labels]:
    """Return images and labels of a pickled batch. Raises NotPlain."""
    batch = read_pickle(content)
    if not isinstance(batch, dict) or not {"data", "labels"} <= batch.keys():
        raise NotPlain('it has no dict with "data" and "labels"')
    data, labels = batch["data"], batch["labels"]
    if not isinstance(data, PickledArray) or not isinstance(labels, list):
        raise NotPlain('its "data" is no array, or its "labels" are no list')
    pixels = data.array()
    if pixels.shape != (num_images, _PIXELS) or len(labels) != num_images:
        raise NotPlain(
            f"it has data of shape {list(pixels.shape)} and {len(labels):,} labels,"
            f" not [{num_images}, {_PIXELS}] and {num_images:,}"
        )
    if not all(type(label) is int and 0 <= label <= _MAX_LABEL for label in labels):
        raise NotPlain(f"it has labels that are not whole numbers from 0 to {_MAX_LABEL}")
    return pixels.reshape(num_images, *_SHAPE), np.array(labels, dtype=np.int64)


def _of_records(content: bytes, num_images: int) -> tuple[Images, Labels]:
    """Return images and labels of a batch in the binary form. Raises NotPlain."""
    wanted = num_images * (1 + _PIXELS)
    if len(content) != wanted:
        raise NotPlain(
            f"it is {len(content):,} bytes long, not {wanted:,}, which are"
            f" {num_images:,} records of {1 + _PIXELS:,}"
        )
    records = np.frombuffer(content, np.uint8).reshape(num_images, 1 + _PIXELS)
    labels = records[:, 0].astype(np.int64)
    if labels.max() > _MAX_LABEL:
        raise NotPlain(f"it has label {labels.max()}; they go from 0 to {_MAX_LABEL}")
    return records[:, 1:].reshape(num_images, *_SHAPE), labels


_PYTHON = _Form(
    folder="cifar-10-batches-py",
    suffix="",
    archive="cifar-10-python.tar.gz",
    archive_md5="c58f30108f718f92721af3b95e74349a",
    read=_of_pickle,
)
_BINARY = _Form(
    folder="cifar-10-batches-bin",
    suffix=".bin",
    archive="cifar-10-binary.tar.gz",
    archive_md5="c32a1d4ab5d03f1284b67883e8d87530",
    read=_of_records,
)
_FORMS = (_PYTHON, _BINARY)
_PYTHON_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""Of the files in the Python form. None are known for those of the other."""


# Where they are -----------------------------------------------------------------------------------


def _in_folder(source: Path) -> _Originals:
    for form in _FORMS:
        names = [form.file(batch) for batch in (*_TRAINING, _TEST)]
        if any((source / name).is_file() for name in names):
            files = {name: _read_file(source / name) for name in names}
            sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
            return _Originals(form, files, f"{source}/", sums == _PYTHON_MD5)
    raise InputError(
        f"{source}: has neither data_batch_1 nor data_batch_1.bin; give the folder"
        f" {_PYTHON.folder} or {_BINARY.folder}, or its archive"
    )


def _read_file(file: Path) -> bytes:
    try:
        if not file.is_file():
            raise InputError(f"{file}: no such file; unpack the archive again")
        if file.stat().st_size > _MAX_FILE_BYTES:
            raise _damaged(str(file), f"it has more than {_MAX_FILE_BYTES:,} bytes")
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None


def _in_archive(source: Path) -> _Originals:
    try:
        with open(source, "rb") as opened:
            md5 = hashlib.file_digest(opened, "md5").hexdigest()
            for form in _FORMS:
                if source.name == form.archive and md5 != form.archive_md5:
                    raise _damaged(
                        str(source), f"its MD5 sum is {md5}, not {form.archive_md5} as published"
                    )
            opened.seek(0)
            with gzip.open(opened) as unzipped:
                members = _members(source, cast(IO[bytes], unzipped))
    except (gzip.BadGzipFile, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
        raise _damaged(str(source), f"it is no whole .tar.gz ({error})") from None
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror or error}") from None
    for form in _FORMS:
        names = [form.file(batch) for batch in (*_TRAINING, _TEST)]
        files = {name: members.get(f"{form.folder}/{name}") for name in names}
        whole = {name: content for name, content in files.items() if content is not None}
        if len(whole) == len(names):
            place = f"{source}: {form.folder}/"
            return _Originals(form, whole, place, md5 == form.archive_md5)
    raise _damaged(
        str(source),
        f"it lacks some of data_batch_1 to 5 and test_batch in {_PYTHON.folder}"
        f" (in {_BINARY.folder} with .bin)",
    )


class _Limited:
    """A stream that ends with an error where it gives more than an archive may hold."""

    def __init__(self, stream: IO[bytes], source: Path) -> None:
        self._stream, self._source, self._left = stream, source, _MAX_ARCHIVE_BYTES

    def read(self, size: int) -> bytes:
        content = self._stream.read(min(size, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise _damaged(
                str(self._source), f"it unpacks to more than {_MAX_ARCHIVE_BYTES:,} bytes"
            )
        return content


def _members(source: Path, unzipped: IO[bytes]) -> dict[str, bytes]:
    """Return the batches in a tar stream by folder and name; nothing is written anywhere."""
    wanted = {f"{form.folder}/{form.file(b)}" for form in _FORMS for b in (*_TRAINING, _TEST)}
    found: dict[str, bytes] = {}
    limited = cast(IO[bytes], _Limited(unzipped, source))
    with tarfile.open(fileobj=limited, mode="r|") as tar:
        for number, member in enumerate(tar):
            if number == _MAX_MEMBERS:
                raise _damaged(str(source), f"it has more than {_MAX_MEMBERS} entries")
            name = _checked_name(source, member)
            if name not in wanted or member.isdir():
                continue
            if name in found:
                raise _damaged(str(source), f"it has {name} twice")
            file = tar.extractfile(member)
            assert file is not None  # it is a plain file
            found[name] = file.read()
    return found


def _checked_name(source: Path, member: tarfile.TarInfo) -> str:
    """Return folder and name of an entry. Raises InputError for one that does not belong here."""
    path = PurePosixPath(member.name)
    shown = f"its entry {member.name[:80]!r}"
    folders = [form.folder for form in _FORMS]
    if path.is_absolute() or ".." in path.parts or path.parts[:1] not in [(f,) for f in folders]:
        raise _damaged(str(source), f"{shown} is not in the folder {' or '.join(folders)}")
    if not (member.isdir() or member.isfile()) or member.issparse():
        raise _damaged(str(source), f"{shown} is a link or another thing that is no plain file")
    if not 0 <= member.size <= _MAX_FILE_BYTES:
        raise _damaged(
            str(source), f"{shown} declares {member.size:,} bytes; {_MAX_FILE_BYTES:,} are allowed"
        )
    return str(path)


def _damaged(place: str, what: str) -> InputError:
    return InputError(f"{place}: not as CIFAR-10 was published: {what}; get the file again")
