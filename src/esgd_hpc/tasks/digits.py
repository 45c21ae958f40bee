"""What the first run trains on: the 1,797 handwritten digits that scikit-learn ships."""

from importlib.util import find_spec
from pathlib import Path

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
    """Return inputs float32 [1797, 64] in [0, 1] and class numbers int64 [1797].

    Reads scikit-learn's file itself, for importing scikit-learn takes a second.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise InputError('task = "digits" needs scikit-learn; install it: pip install scikit-learn')
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(path, delimiter=",")
    except OSError as error:
        raise InputError(
            f'task = "digits" needs a file of scikit-learn that cannot be read ({error}); install'
            " it again: pip install --force-reinstall scikit-learn"
        ) from None
    return (
        torch.from_numpy((table[:, :-1] / 16.0).astype(np.float32)),
        torch.from_numpy(table[:, -1].astype(np.int64)),
    )
