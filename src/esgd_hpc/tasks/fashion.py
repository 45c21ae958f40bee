"""What the image runs train on: Fashion-MNIST, 60,000 pictures of clothes in ten classes.

A stand-in for CIFAR-10 that a Debian package carries. The last training images are the validation
data; the 10,000 test images are left for a final comparison and not read here.
Xiao, Rasul, Vollgraf, "Fashion-MNIST: a novel image dataset ...", arXiv 1708.07747.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from esgd_hpc.data.idx import read_idx
from esgd_hpc.errors import InputError
from esgd_hpc.models.cnn import CNN
from esgd_hpc.models.resnet import ResNet20
from esgd_hpc.tasks.base import Batch, ClassificationTask
from esgd_hpc.tasks.options import check_one_of, check_whole_number

_FOLDER_VARIABLE = "ESGD_FASHION_MNIST"
_DEBIAN_FOLDER = "/usr/share/datasets/fashion-mnist"
_MEAN, _DEVIATION = 0.2860, 0.3530
"""Of all pixels of the training images, scaled to [0, 1]."""
_CROP_PADDING = 4


class FashionTask(ClassificationTask):
    """Batches are (uint8 [n, s, s], class numbers); the networks get normalized float32.

    Bytes stay bytes until a batch is used: a quarter of the memory on each rank. The side s is 28
    for the CNN; the ResNet gets 32 and three equal channels, as from CIFAR-10.
    """

    def __init__(
        self, images: Tensor, classes: Tensor, num_validation: int, model: str, augment: bool
    ) -> None:
        """Take images uint8 [n, 28, 28], of which the last `num_validation` are for validation."""
        self._model, self._augment = model, augment
        if model == "resnet20":
            images = nn.functional.pad(images, (2, 2, 2, 2))
        super().__init__(
            training=(images[:-num_validation], classes[:-num_validation]),
            validation=(images[-num_validation:], classes[-num_validation:]),
        )

    def model(self) -> nn.Module:
        return ResNet20(classes=10) if self._model == "resnet20" else CNN(classes=10)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().loss(model, self._normalized(batch))

    def score(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return super().score(model, self._normalized(batch))

    def augment(self, batch: Batch) -> Batch:
        if not self._augment:
            return batch
        images, targets = batch
        return flip_and_crop(images, _CROP_PADDING), targets

    def _normalized(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return inputs float32 [n, channels, s, s] of mean 0 and deviation 1, and the targets."""
        images, targets = batch
        inputs = images.unsqueeze(1).to(torch.float32).div_(255.0).sub_(_MEAN).div_(_DEVIATION)
        if self._model == "resnet20":
            inputs = inputs.expand(-1, 3, -1, -1)
        return inputs, targets


def fashion(
    *,
    path: str = "",
    model: str = "cnn",
    training_images: int = 0,
    validation_images: int = 5000,
    augment: bool = False,
) -> FashionTask:
    """Return the task from the IDX files in `path`.

    An empty path means $ESGD_FASHION_MNIST, else the folder of the Debian package. The last
    `validation_images` validate; the first `training_images` train, where 0 is all the others.
    `augment` flips and crops training images at random.

    Raises InputError where an option is out of bounds or a file is missing or damaged.
    """
    check_one_of("model", model, ("cnn", "resnet20"))
    check_one_of("augment", augment, (False, True))
    folder = Path(path or os.environ.get(_FOLDER_VARIABLE, "") or _DEBIAN_FOLDER)
    images = read_idx(_file(folder, "train-images-idx3-ubyte"))
    classes = read_idx(_file(folder, "train-labels-idx1-ubyte"))
    if images.shape[1:] != (28, 28) or classes.shape != images.shape[:1] or classes.max() > 9:
        raise InputError(
            f"{folder}: images of shape {list(images.shape)} with classes of shape"
            f" {list(classes.shape)} up to {classes.max()} are not those of Fashion-MNIST,"
            " [n, 28, 28] and [n] up to 9; get the files again"
        )
    check_whole_number("validation_images", validation_images, 1, len(images) - 1)
    num_rest = len(images) - validation_images
    check_whole_number("training_images", training_images, 0, num_rest)
    num_training = training_images or num_rest
    images = np.concatenate([images[:num_training], images[num_rest:]])
    classes = np.concatenate([classes[:num_training], classes[num_rest:]])
    return FashionTask(
        torch.from_numpy(images),
        torch.from_numpy(classes.astype(np.int64)),
        validation_images,
        model,
        augment,
    )


def flip_and_crop(images: Tensor, padding: int) -> Tensor:
    """Return the images, each mirrored with probability 1/2 and moved by up to `padding` pixels.

    Images are [n, height, width]; what moves in is 0. Draws from torch's global generator.
    """
    num_images, height, width = images.shape
    device = images.device
    padded = nn.functional.pad(images, (padding, padding, padding, padding))
    shifts = torch.randint(0, 2 * padding + 1, (2, num_images, 1), device=device)
    mirrored = torch.rand(num_images, 1, device=device) < 0.5
    rows = torch.arange(height, device=device) + shifts[0]
    columns = torch.arange(width, device=device)
    columns = torch.where(mirrored, width - 1 - columns, columns) + shifts[1]
    which = torch.arange(num_images, device=device)
    return padded[which[:, None, None], rows[:, :, None], columns[:, None, :]]


def _file(folder: Path, name: str) -> Path:
    for file in (folder / f"{name}.gz", folder / name):
        if file.is_file():
            return file
    raise InputError(
        f'task = "fashion": {folder} has no {name}.gz; install the Debian package'
        " dataset-fashion-mnist, or unpack it anywhere (dpkg-deb -x) and set task_options.path or"
        f" {_FOLDER_VARIABLE} to the folder with its .gz files"
    )
