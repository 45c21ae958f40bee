"""What the image runs train on: CIFAR-10 (section 4.2), and Fashion-MNIST, which stands in for it.

Prepared files have train/ and test/ images, uint8 [n, channels, height, width], and labels, int64
[n], and as attributes the mean and deviation of each channel of the training images.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from esgd_hpc.data.store import Store, Stored, open_store
from esgd_hpc.errors import InputError
from esgd_hpc.models.cnn import CNN
from esgd_hpc.models.resnet import ResNet20
from esgd_hpc.tasks.base import Batch, ClassificationTask
from esgd_hpc.tasks.options import check_one_of, check_whole_number

_CLASSES = 10
_CROP_PADDING = 4
_RESNET_CHANNELS, _RESNET_SIDE = 3, 32


class ImageTask(ClassificationTask):
    """Batches are (uint8 [n, channels, s, s], labels); the networks get normalized float32.

    Bytes stay bytes until a batch is used: a quarter of the memory. The ResNet gets smaller images
    in a black frame of 32 x 32, and a single channel three times.
    """

    def __init__(
        self,
        store: Store,
        shape: tuple[int, int, int],
        *,
        model: str,
        training_images: int,
        validation_images: int,
        augment: bool,
    ) -> None:
        """Take a prepared file with images of `shape`, which may be missing.

        The last `validation_images` of its training images validate, all of them where it is 0.
        The first `training_images` train, all others where it is 0.
        """
        self._model, self._augment = model, augment
        self._side = _RESNET_SIDE if model == "resnet20" else shape[-1]
        images, labels = store["train/images"], store["train/labels"]
        test = (store["test/images"], store["test/labels"])
        if not store.is_missing:
            _check_shapes(store, shape)
            self.shared = {name: _per_channel(store, name) for name in ("mean", "deviation")}
        num_images = images.shape[0] if images.shape else None
        most = None if num_images is None else num_images - 1
        check_whole_number("validation_images", validation_images, 0, most)
        num_rest = None if num_images is None else num_images - validation_images
        check_whole_number("training_images", training_images, 0, num_rest)
        training = validation = (images, labels)
        if num_images is not None and num_rest is not None:
            training = _rows(training, 0, training_images or num_rest)
            validation = _rows(validation, num_rest, num_images) if validation_images else training
        super().__init__(training=training, validation=validation, test=test)

    def model(self) -> nn.Module:
        return ResNet20(_CLASSES) if self._model == "resnet20" else CNN(_CLASSES)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().loss(model, self._normalized(batch))

    def score(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return super().score(model, self._normalized(batch))

    def augment(self, batch: Batch) -> Batch:
        if not self._augment:
            return batch
        images, labels = batch
        return flip_and_crop(self._framed(images), _CROP_PADDING), labels

    def _framed(self, images: Tensor) -> Tensor:
        """Return the images with a black frame, as large as the network wants them."""
        margin = (self._side - images.shape[-1]) // 2
        return nn.functional.pad(images, (margin, margin, margin, margin)) if margin else images

    def _normalized(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return inputs float32 [n, channels, s, s] of mean 0 and deviation 1, and the labels."""
        images, labels = batch
        mean, deviation = self.shared["mean"], self.shared["deviation"]
        assert isinstance(mean, Tensor)
        assert isinstance(deviation, Tensor)
        inputs = self._framed(images).to(torch.float32).div_(255.0).sub_(mean).div_(deviation)
        if self._model == "resnet20":
            inputs = inputs.expand(-1, _RESNET_CHANNELS, -1, -1)
        return inputs, labels


def cifar10(*, path: str = "", validation_images: int = 0, augment: bool = True) -> ImageTask:
    """Return CIFAR-10 with ResNet-20, from the prepared file (see `data_file` for `path`).

    The paper has no validation data here, and scores individuals on the training images: so does
    `fitness.data = "training"`. With `validation_images` the last of them validate and do not
    train. `augment` flips and crops training images at random. The 10,000 test images test.

    Raises InputError where an option is out of bounds, or the file does not fit.
    """
    check_one_of("augment", augment, (False, True))
    return ImageTask(
        open_store("cifar10", path),
        (3, 32, 32),
        model="resnet20",
        training_images=0,
        validation_images=validation_images,
        augment=augment,
    )


def fashion(
    *,
    path: str = "",
    model: str = "cnn",
    training_images: int = 0,
    validation_images: int = 5000,
    augment: bool = False,
) -> ImageTask:
    """Return Fashion-MNIST with a network of one's choice, from the prepared file.

    The last `validation_images` of the training images validate; the first `training_images` train,
    where 0 is all the others. `augment` flips and crops training images at random. The 10,000 test
    images test.

    Raises InputError where an option is out of bounds, or the file does not fit.
    """
    check_one_of("model", model, ("cnn", "resnet20"))
    check_one_of("augment", augment, (False, True))
    check_whole_number("validation_images", validation_images, 1)
    return ImageTask(
        open_store("fashion", path),
        (1, 28, 28),
        model=model,
        training_images=training_images,
        validation_images=validation_images,
        augment=augment,
    )


def flip_and_crop(images: Tensor, padding: int) -> Tensor:
    """Return the images, each mirrored with probability 1/2 and moved by up to `padding` pixels.

    Images are [n, channels, height, width]; what moves in is 0. Draws from torch's global
    generator.
    """
    num_images, num_channels, height, width = images.shape
    device = images.device
    padded = nn.functional.pad(images, (padding, padding, padding, padding))
    shifts = torch.randint(0, 2 * padding + 1, (2, num_images, 1), device=device)
    mirrored = torch.rand(num_images, 1, device=device) < 0.5
    rows = torch.arange(height, device=device) + shifts[0]
    columns = torch.arange(width, device=device)
    columns = torch.where(mirrored, width - 1 - columns, columns) + shifts[1]
    which = torch.arange(num_images, device=device)[:, None, None, None]
    channels = torch.arange(num_channels, device=device)[:, None, None]
    return padded[which, channels, rows[:, None, :, None], columns[:, None, None, :]]


def _rows(data: tuple[Stored, Stored], start: int, stop: int) -> tuple[Stored, Stored]:
    images, labels = data
    return images.rows(start, stop), labels.rows(start, stop)


def _check_shapes(store: Store, shape: tuple[int, int, int]) -> None:
    for split in ("train", "test"):
        images, labels = store[f"{split}/images"], store[f"{split}/labels"]
        num_images = images.shape[0] if images.shape else 0
        fits = images.shape == (num_images, *shape) and labels.shape == (num_images,)
        if not fits or images.dtype != np.uint8 or labels.dtype != np.int64:
            raise _unfit(
                store,
                f"its {split}/images are {images.dtype} {images.shape} and {split}/labels"
                f" {labels.dtype} {labels.shape}, not uint8 [n, {shape[0]}, {shape[1]}, {shape[2]}]"
                " and int64 [n]",
            )


def _per_channel(store: Store, name: str) -> Tensor:
    """Return an attribute with a number for each channel of the images, as float32 [c, 1, 1]."""
    values = store.attributes.get(name)
    shape = store["train/images"].shape
    num_channels = shape[1] if shape else 0
    if not isinstance(values, list) or len(values) != num_channels:
        raise _unfit(store, f"its attribute {name} is {values}, not {num_channels} numbers")
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def _unfit(store: Store, what: str) -> InputError:
    name = store.attributes["name"]
    return InputError(f"{store.file}: {what}; run `esgd data prepare {name}` again")
