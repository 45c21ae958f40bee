"""The no-op twin of gradient averaging, for a group of one rank."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor


class SingleAveraging:
    """A group of one: every sum is the value itself."""

    name = "single"
    rank = 0
    size = 1

    def expect(self, *, overlaps: bool) -> None:
        """Do nothing."""

    def broadcast(self, flat: Tensor) -> None:
        """Do nothing."""

    def sum(self, flat: Tensor) -> None:
        """Do nothing."""

    def start_sum(self, flat: Tensor) -> Callable[[], None]:
        """Begin nothing."""
        return lambda: None

    def sum_metrics(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the values."""
        return values

    def close(self) -> None:
        """Do nothing."""
