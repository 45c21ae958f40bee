"""What the pixels of images are like: the numbers that inputs of a network are scaled by."""

import numpy as np
import numpy.typing as npt


class PixelStatistics:
    """Mean and standard deviation of each channel over all images that were added."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: npt.NDArray[np.int64] | int = 0
        self._squares: npt.NDArray[np.int64] | int = 0

    def add(self, images: npt.NDArray[np.uint8]) -> None:
        """Count images, uint8 [n, channels, height, width]. Sums of whole numbers are exact."""
        self._count += images.size // images.shape[1]
        self._sums += images.sum(axis=(0, 2, 3), dtype=np.int64)
        squares = np.square(images, dtype=np.uint16)
        self._squares += squares.sum(axis=(0, 2, 3), dtype=np.int64)

    def attributes(self) -> dict[str, list[float]]:
        """Return "mean" and "deviation", one number a channel, of pixels scaled to [0, 1]."""
        mean = np.asarray(self._sums) / self._count
        variance = np.asarray(self._squares) / self._count - mean**2
        return {
            "mean": (mean / 255.0).tolist(),
            "deviation": (np.sqrt(variance) / 255.0).tolist(),
        }
