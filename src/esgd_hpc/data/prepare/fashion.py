"""How Fashion-MNIST is read from its IDX files, as a Debian package ships them.

70,000 pictures of clothes, 28 x 28, in ten classes.
H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine
learning algorithms", arXiv 1708.07747.
"""

from pathlib import Path

import numpy as np

from esgd_hpc.data.idx import read_idx
from esgd_hpc.data.prepare import Say, StoreWriter
from esgd_hpc.data.prepare.pixels import PixelStatistics
from esgd_hpc.errors import InputError

_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_SPLITS = {"train": ("train", 60_000), "test": ("t10k", 10_000)}
"""By the names in the prepared file: the names of the originals, and how many images they hold."""
_SIDE = 28
_MAX_LABEL = 9


def prepare(name: str, source: Path | None, writer: StoreWriter, say: Say) -> None:
    """Write train/ and test/ images, uint8 [n, 1, 28, 28], and labels, int64 [n].

    Raises InputError where a file is missing, damaged or of another data set.
    """
    folder = source or _DEBIAN_FOLDER
    for split, (original, num_images) in _SPLITS.items():
        images = read_idx(_file(folder, f"{original}-images-idx3-ubyte"))
        labels = read_idx(_file(folder, f"{original}-labels-idx1-ubyte"))
        wanted = (num_images, _SIDE, _SIDE)
        if images.shape != wanted or labels.shape != wanted[:1] or labels.max() > _MAX_LABEL:
            raise InputError(
                f"{folder}: {original} has images of shape {list(images.shape)} and labels of"
                f" shape {list(labels.shape)} up to {labels.max()}; those of Fashion-MNIST are"
                f" {list(wanted)} and [{num_images}] up to {_MAX_LABEL}; get the files again"
            )
        images = images[:, None]
        writer.append(f"{split}/images", images)
        writer.append(f"{split}/labels", labels.astype(np.int64))
        if split == "train":
            statistics = PixelStatistics()
            statistics.add(images)
            writer.note(**statistics.attributes())
    say(f"{folder}: 60,000 training and 10,000 test images")


def _file(folder: Path, name: str) -> Path:
    for file in (folder / f"{name}.gz", folder / name):
        if file.is_file():
            return file
    raise InputError(
        f"{folder}: has no {name}.gz; install the Debian package dataset-fashion-mnist, or unpack"
        " it anywhere (dpkg-deb -x) and give the folder with its .gz files to --source"
    )
