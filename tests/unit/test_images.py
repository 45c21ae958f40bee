"""CIFAR-10 and Fashion-MNIST are split, normalized, changed at random and trained as told."""

import gzip
import importlib.util
import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch._dynamo  # torch imports it later and then changes the environment
from PIL import Image
from torch import Tensor, nn

from esgd_hpc.data.batches import Data, fetch, fixed_batches, length, training_shards
from esgd_hpc.data.prepare import prepare
from esgd_hpc.data.store import open_store, read, writing
from esgd_hpc.errors import InputError
from esgd_hpc.models.resnet import ResNet20
from esgd_hpc.recipe_file import load_recipe
from esgd_hpc.sgd.optimizers import draw_optimizer, milestone_scale
from esgd_hpc.tasks import load_task, missing_data_of, put_data, read_data
from esgd_hpc.tasks.base import Task
from esgd_hpc.tasks.images import flip_and_crop

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
CPU = torch.device("cpu")
CHANNELS = {"fashion": 1, "cifar10": 3}
SIDES = {"fashion": 28, "cifar10": 32}


def loaded(name: str, **options: Any) -> Task:
    """Return the task with its data in memory, as a run has it."""
    task = load_task(name, options)
    put_data(task, read_data(task, lambda stored: torch.from_numpy(read(stored))))
    return task


def tensors(data: Data | None) -> tuple[Tensor, Tensor]:
    assert isinstance(data, tuple)
    images, labels = data
    return images, labels


def refusal(name: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load_task(name, options)
    return str(caught.value)


def write_small(folder: Path, name: str, **changes: Any) -> Path:
    """Prepare 30 training and 10 test images whose every pixel is the image's number."""
    shape = (CHANNELS[name], SIDES[name], SIDES[name])
    numbers = np.arange(40, dtype=np.uint8)
    images = np.broadcast_to(numbers[:, None, None, None], (40, *shape)).copy()
    attributes: dict[str, Any] = {
        "mean": [0.1, 0.2, 0.3][: shape[0]],
        "deviation": [0.5, 0.6, 0.7][: shape[0]],
    }
    rows: dict[str, npt.NDArray[Any]] = {
        "train/images": images[:30],
        "train/labels": np.arange(30) % 10,
        "test/images": images[30:],
        "test/labels": np.arange(30, 40) % 10,
    }
    file = folder / f"{name}.h5"
    with writing(file, name) as writer:
        for key, value in (rows | changes).items():
            if key in rows:
                writer.append(key, value)
        writer.note(**{key: changes.get(key, value) for key, value in attributes.items()})
    return file


@pytest.fixture
def small(tmp_path: Path) -> str:
    write_small(tmp_path, "fashion")
    write_small(tmp_path, "cifar10")
    return str(tmp_path)


def numbers(data: Data | None) -> list[int]:
    """Return which images of `small` these are, by the pixel in the middle."""
    images, labels = tensors(data)
    which: list[int] = images[:, 0, 14, 14].tolist()
    assert images.dtype == torch.uint8
    assert labels.tolist() == [number % 10 for number in which]
    return which


# Splits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fashion", "cifar10"])
def test_the_last_training_images_validate_and_test_images_test(name: str, small: str) -> None:
    task = loaded(name, path=small, validation_images=4)
    assert numbers(task.training) == list(range(26))
    assert numbers(task.validation) == [26, 27, 28, 29]
    assert numbers(task.test) == list(range(30, 40))


def test_training_images_may_be_fewer(small: str) -> None:
    task = loaded("fashion", path=small, validation_images=2, training_images=5)
    assert numbers(task.training) == [0, 1, 2, 3, 4]
    assert numbers(task.validation) == [28, 29]


def test_cifar10_validates_on_its_training_images_which_are_read_once(small: str) -> None:
    task = load_task("cifar10", {"path": small})
    places: list[str] = []
    found = read_data(task, lambda s: places.append(s.name) or torch.from_numpy(read(s)))  # type: ignore[func-returns-value]
    put_data(task, found)
    assert numbers(task.training) == numbers(task.validation) == list(range(30))
    assert tensors(task.validation)[0] is tensors(task.training)[0]
    assert sorted(places) == ["test/images", "test/labels", "train/images", "train/labels"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"model": "vgg"}, 'model = \'vgg\': expected one of "cnn", "resnet20"'),
        ({"augment": "yes"}, "augment = 'yes': expected one of false, true"),
        ({"validation_images": 0}, "validation_images = 0: expected a whole number of at least 1"),
        ({"validation_images": 30}, "validation_images = 30: expected a whole number from 0 to 29"),
        ({"training_images": -1}, "training_images = -1: expected a whole number from 0 to 25"),
        ({"training_images": 26}, "training_images = 26: expected a whole number from 0 to 25"),
    ],
    ids=str,
)
def test_options_of_fashion_are_checked(small: str, options: dict[str, Any], told: str) -> None:
    message = refusal("fashion", **{"path": small, "validation_images": 5, **options})
    assert message.startswith(f"task_options.{told}")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"augment": 2}, "augment = 2: expected one of false, true"),
        ({"validation_images": -1}, "validation_images = -1: expected a whole number from 0 to 29"),
        ({"validation_images": 30}, "validation_images = 30: expected a whole number from 0 to 29"),
    ],
    ids=str,
)
def test_options_of_cifar10_are_checked(small: str, options: dict[str, Any], told: str) -> None:
    assert refusal("cifar10", path=small, **options).startswith(f"task_options.{told}")


@pytest.mark.parametrize("name", ["fashion", "cifar10"])
def test_networks_are_made_without_data(name: str, tmp_path: Path) -> None:
    task = load_task(name, {"path": str(tmp_path)})
    assert missing_data_of(task)
    assert sum(p.numel() for p in task.model().parameters()) in (20_746, 269_722)
    told = refusal(name, path=str(tmp_path), validation_images=-1)
    assert told.startswith("task_options.validation_images = -1")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"test/images": np.zeros((10, 3, 32, 31), np.uint8)}, "its test/images are uint8"),
        ({"train/images": np.zeros((30, 3, 32, 32), np.float32)}, "its train/images are float32"),
        ({"train/labels": np.zeros(29, np.int64)}, r".*train/labels int64 \(29,\), not"),
        ({"train/labels": np.zeros(30, np.uint8)}, r".*train/labels uint8 \(30,\), not"),
        ({"mean": [0.1]}, r"its attribute mean is \[0.1\], not 3 numbers"),
        ({"deviation": 0.5}, "its attribute deviation is 0.5, not 3 numbers"),
    ],
    ids=["shape", "type", "fewer labels", "type of labels", "mean", "deviation"],
)
def test_a_prepared_file_that_does_not_fit_is_refused(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    write_small(tmp_path, "cifar10", **changes)
    with pytest.raises(InputError, match=rf"cifar10\.h5: {told}.*; run `esgd data prepare cifar10"):
        load_task("cifar10", {"path": str(tmp_path)})


# What the networks get ----------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "shape"), [("cnn", (1, 28, 28)), ("resnet20", (3, 32, 32))])
def test_fashion_scores_normalized_images(small: str, model: str, shape: tuple[int, ...]) -> None:
    task = loaded("fashion", path=small, validation_images=4, model=model)
    images, labels = tensors(task.validation)
    before = images.clone()
    network = task.model().eval()
    margin = (shape[-1] - 28) // 2
    pixels = nn.functional.pad(
        torch.arange(26, 30.0)[:, None, None].expand(4, 28, 28), (margin,) * 4
    )
    inputs = ((pixels / 255 - 0.1) / 0.5)[:, None].expand(4, *shape)
    expected = nn.functional.cross_entropy(network(inputs), labels)
    batch = (images, labels)
    for loss in (task.score(network, batch)["loss"], task.loss(network, batch)):
        torch.testing.assert_close(loss, expected)
    assert torch.equal(images, before)
    assert isinstance(network, ResNet20) == (model == "resnet20")


def test_cifar10_scores_images_normalized_by_channel(small: str) -> None:
    task = loaded("cifar10", path=small)
    images, labels = tensors(task.training)
    network = task.model().eval()
    pixels = torch.arange(30.0)[:, None, None, None].expand(30, 3, 32, 32) / 255
    mean, deviation = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    inputs = (pixels - mean[:, None, None]) / deviation[:, None, None]
    expected = nn.functional.cross_entropy(network(inputs), labels)
    torch.testing.assert_close(task.score(network, (images, labels))["loss"], expected)


def moved(image: Tensor, padding: int, mirror: bool, down: int, right: int) -> Tensor:
    _, height, width = image.shape
    padded = nn.functional.pad(image, (padding,) * 4)
    flipped = padded.flip(2) if mirror else padded
    return flipped[:, down : down + height, right : right + width]


def test_flip_and_crop_gives_each_image_one_of_its_moves() -> None:
    torch.manual_seed(3)
    images = torch.randint(1, 256, (400, 3, 6, 5), dtype=torch.uint8)
    before = images.clone()
    result = flip_and_crop(images, 2)
    assert result.dtype == torch.uint8
    assert result.shape == images.shape
    assert torch.equal(images, before)
    moves = list(itertools.product([False, True], range(5), range(5)))
    found = []
    for image, changed in zip(images, result, strict=True):
        fits = [move for move in moves if torch.equal(moved(image, 2, *move), changed)]
        assert len(fits) == 1
        found += fits
    assert set(found) == set(moves)
    assert 150 < sum(mirror for mirror, _, _ in found) < 250


def test_augmentation_is_repeated_with_the_seed_and_off_by_default(small: str) -> None:
    plain = loaded("fashion", path=small, validation_images=4)
    changing = loaded("fashion", path=small, validation_images=4, augment=True)
    batch = tensors(plain.training)
    assert plain.augment(batch) is batch
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        images, labels = changing.augment(batch)
        assert labels is batch[1]
        drawn.append(images)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("name", "options"), [("cifar10", {}), ("fashion", {"model": "resnet20", "augment": True})]
)
def test_augmented_images_can_be_trained_on(name: str, options: Any, small: str) -> None:
    task = loaded(name, path=small, validation_images=4, **options)
    model = task.model()
    images, labels = tensors(task.training)
    batch = task.augment((images, labels))
    assert batch[0].shape == (26, CHANNELS[name], 32, 32)
    assert batch[0].dtype == torch.uint8
    task.loss(model, batch).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# Real Fashion-MNIST -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_fashion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the prepared file."""
    if not DEBIAN_FOLDER.is_dir():
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    folder = tmp_path_factory.mktemp("data")
    prepare("fashion", None, folder / "fashion.h5", lambda _: None)
    return folder


def test_real_fashion_is_whole(real_fashion: Path) -> None:
    task = loaded("fashion", path=str(real_fashion))
    training, validation = tensors(task.training), tensors(task.validation)
    sizes = [length(data) for data in (task.training, task.validation, task.test or ())]
    assert sizes == [55_000, 5_000, 10_000]
    assert torch.bincount(torch.cat([training[1], validation[1]])).tolist() == [6000] * 10
    assert torch.bincount(tensors(task.test)[1]).tolist() == [1000] * 10
    pixels = torch.cat([training[0], validation[0]]).to(torch.float64) / 255
    attributes = open_store("fashion", str(real_fashion)).attributes
    assert attributes["mean"] == pytest.approx([pixels.mean().item()], rel=1e-9)
    assert attributes["deviation"] == pytest.approx([pixels.std(correction=0).item()], rel=1e-9)


def test_real_fashion_is_what_others_have_of_it(real_fashion: Path) -> None:
    """The wheel of foolbox has the first twenty test images as PNG files with labels."""
    found = importlib.util.find_spec("foolbox")
    if found is None or found.origin is None:
        pytest.skip("needs the pictures in foolbox's wheel: pip install --no-deps foolbox")
    files = sorted((Path(found.origin).parent / "data").glob("fashionMNIST_*.png"))
    images, labels = tensors(loaded("fashion", path=str(real_fashion)).test)
    assert len(files) == 20
    assert labels[:20].tolist() == [int(file.stem.split("_")[2]) for file in files]
    for image, file in zip(images, files, strict=False):
        assert np.array_equal(image[0].numpy(), np.asarray(Image.open(file).convert("L")))


def test_real_fashion_can_be_learned(real_fashion: Path) -> None:
    task = loaded("fashion", path=str(real_fashion), training_images=4000, validation_images=1000)
    torch.manual_seed(1)
    model = task.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    order = np.random.default_rng(1)
    for _ in range(2):
        shards = training_shards(order.permutation(4000), 64, 0, 1)
        for batch in fetch(task.training, [indices for indices, _ in shards], CPU):
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
    model.eval()
    batches = list(fetch(task.test or (), fixed_batches(10_000, 1000), CPU))
    with torch.no_grad():
        errors = [task.score(model, batch)["error_rate"].item() for batch in batches]
    assert np.mean(errors) < 0.3


def write_idx(path: Path, array: npt.NDArray[Any]) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes(), compresslevel=1))


@pytest.mark.parametrize(
    ("images", "labels", "most"),
    [
        ((30, 28, 28), (30,), 9),
        ((60000, 28, 1), (60000,), 9),
        ((60000, 784), (60000,), 9),
        ((60000, 28, 28), (60000, 1), 9),
        ((60000, 28, 28), (60000,), 10),
    ],
    ids=str,
)
def test_files_of_another_data_set_are_refused(
    tmp_path: Path, images: tuple[int, ...], labels: tuple[int, ...], most: int
) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", np.zeros(images, np.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.full(labels, most))
    told = (
        f"{tmp_path}: train has images of shape {list(images)} and labels of shape {list(labels)}"
    )
    with pytest.raises(InputError) as caught:
        prepare("fashion", tmp_path, tmp_path / "out.h5", print)
    assert str(caught.value).startswith(f"{told} up to {most}; those of Fashion-MNIST are")


def test_missing_images_are_refused_with_the_package(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        prepare("fashion", tmp_path, tmp_path / "out.h5", print)
    message = str(caught.value)
    assert f"{tmp_path}: has no train-images-idx3-ubyte.gz; install the Debian package" in message
    assert "dataset-fashion-mnist" in message


# Recipes ------------------------------------------------------------------------------------------

RESNET, CNN = 269_722, 20_746
RECIPES = {
    "cifar10": RESNET,
    "cifar10-single": RESNET,
    "cifar10-population": RESNET,
    "cifar10-anchor": RESNET,
    "fashion": CNN,
    "fashion-small": CNN,
    "fashion-anchor": CNN,
    "fashion-resnet20": RESNET,
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_a_task_and_options_that_fit(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    task = load_task(recipe.task, {**recipe.task_options, "path": str(tmp_path)})
    assert sum(p.numel() for p in task.model().parameters()) == RECIPES[name]


@pytest.mark.parametrize(
    "name", ["cifar10", "cifar10-single", "cifar10-population", "fashion-resnet20"]
)
def test_learning_rates_follow_the_schedule_of_the_paper(name: str) -> None:
    """Footnote 2 of the supplement: 0.1 for 80 epochs, 0.01 for 41, then 0.001; 160 in all."""
    recipe = load_recipe(name)
    rates = []
    for generation in range(1, recipe.last_generation + 1):
        individual: Any = type("Individual", (), {"uid": 3, "draw": None})
        draw = draw_optimizer(recipe, {}, generation, individual)
        assert (draw.optimizer, draw.momentum, draw.nesterov) == ("sgd", 0.9, True)
        for epoch in range(1, recipe.sgd.epochs + 1):
            rates.append(draw.learning_rate * milestone_scale(recipe, generation, epoch))
    base = np.array([0.1] * 80 + [0.01] * 41 + [0.001] * 39)
    factors = np.array(rates) / base
    assert ((factors > 0.8999) & (factors < 1.1001)).all()
    drawn_once = name in ("cifar10-single", "cifar10-population")
    assert len(set(factors.round(9))) == (1 if drawn_once else 8)
