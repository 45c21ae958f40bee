"""What the first run trains on: the 1,797 handwritten digits that scikit-learn ships."""

import numpy as np
import torch
from torch import nn

from esgd_hpc.errors import InputError
from esgd_hpc.models.mlp import MLP
from esgd_hpc.tasks.base import ClassificationTask
from esgd_hpc.tasks.options import check_fraction, check_whole_number

_SPLIT_KEY = 20180711
"""The split is one constant, not drawn from the run's seed: runs stay comparable."""


class DigitsTask(ClassificationTask):
    """Inputs float32 [n, 64] in [0, 1], ten classes, a multilayer perceptron."""

    def __init__(self, hidden: int, validation_fraction: float) -> None:
        inputs, targets = _load()
        order = np.random.Generator(np.random.Philox(key=_SPLIT_KEY)).permutation(len(inputs))
        num_validation = min(max(1, round(validation_fraction * len(order))), len(order) - 1)
        validation, training = order[:num_validation], order[num_validation:]
        super().__init__(
            training=(inputs[training], targets[training]),
            validation=(inputs[validation], targets[validation]),
        )
        self._hidden = hidden

    def model(self) -> nn.Module:
        return MLP(inputs=64, hidden=self._hidden, classes=10)


def digits(*, hidden: int = 64, validation_fraction: float = 0.2) -> DigitsTask:
    """Return the task; `hidden` is the width of the network's one hidden layer.

    Raises InputError where an option is out of bounds or scikit-learn is missing.
    """
    check_whole_number("hidden", hidden, 1)
    check_fraction("validation_fraction", validation_fraction)
    return DigitsTask(hidden, validation_fraction)


def _load() -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs float32 [1797, 64] in [0, 1] and class numbers int64 [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            f'task = "digits" needs scikit-learn ({error}); install it: pip install scikit-learn'
        ) from None
    pixels, classes = load_digits(return_X_y=True)
    return (
        torch.from_numpy((pixels / 16.0).astype(np.float32)),
        torch.from_numpy(classes.astype(np.int64)),
    )
