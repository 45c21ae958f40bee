"""How to read IDX files, the format of MNIST and Fashion-MNIST, without trusting them.

    2 zero bytes | type: 8 is uint8 | number of dimensions | each one, uint32 big-endian | data

The file may be gzipped. No more is read or decompressed than the header declares, and a byte.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from esgd_hpc.errors import InputError

_UINT8 = 8
_MAX_DIMENSIONS = 4
_MAX_BYTES = 2**30
_GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: str | Path) -> npt.NDArray[np.uint8]:
    """Return the array of an IDX file of uint8, read-only, in the file's shape.

    Raises InputError that names the file where it is missing or not whole.
    """
    try:
        with open(path, "rb") as plain:
            is_gzip = plain.read(2) == _GZIP_MAGIC
            plain.seek(0)
            if not is_gzip:
                return _read(path, plain)
            with gzip.open(plain) as unzipped:
                return _read(path, unzipped)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the folder") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, f"the gzip stream is damaged: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _read(path: str | Path, file: BinaryIO | gzip.GzipFile) -> npt.NDArray[np.uint8]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise _damaged(path, f"it starts with {magic.hex(' ')!r}, not with the 00 00 of IDX")
    if magic[2] != _UINT8:
        raise _damaged(path, f"its values are of type 0x{magic[2]:02x}, not 0x08 for uint8")
    num_dimensions = magic[3]
    if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        raise _damaged(path, f"{num_dimensions} dimensions are not from 1 to {_MAX_DIMENSIONS}")
    header = file.read(4 * num_dimensions)
    if len(header) < 4 * num_dimensions:
        raise _damaged(path, "it ends inside the header")
    shape = [int(size) for size in np.frombuffer(header, ">u4")]
    num_bytes = math.prod(shape)
    if not 0 < num_bytes <= _MAX_BYTES:
        raise _damaged(path, f"shape {shape} is {num_bytes} bytes, not from 1 to {_MAX_BYTES}")
    content = file.read(num_bytes + 1)
    if len(content) != num_bytes:
        found = f"only {len(content)}" if len(content) < num_bytes else "more"
        raise _damaged(path, f"shape {shape} is {num_bytes} bytes, but {found} follow")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _damaged(path: str | Path, what: str) -> InputError:
    return InputError(f"{path}: not a whole IDX file: {what}; get the file again")
