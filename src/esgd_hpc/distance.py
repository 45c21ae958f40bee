"""How far the weights of two individuals are apart, tensor by tensor, from pieces of both."""

import math
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from esgd_hpc.layout import Entry, Layout

Piece = npt.NDArray[np.float32]


class Distance(msgspec.Struct, frozen=True, kw_only=True):
    """Of one tensor, or of several that lie one after another in the flat vector."""

    absolute: float
    """Euclidean; NaN for integer buffers, not finite where a weight is not."""
    norm: float
    """Euclidean norm of the first individual's."""
    equal: bool
    """Whether all bits are the same."""

    @property
    def relative(self) -> float:
        """The distance in units of the norm; NaN where that is 0 and the distance is not."""
        if self.absolute == 0.0:
            return 0.0
        return self.absolute / self.norm if self.norm > 0.0 else math.nan


class TensorDistance(Distance, frozen=True, kw_only=True):
    """The distance in one tensor of the layout."""

    entry: Entry


def tensor_distances(
    layout: Layout, first: Iterable[Piece], second: Iterable[Piece]
) -> list[TensorDistance]:
    """Return the distance of two individuals in each tensor, in the order of the layout.

    The pieces of each make up its flat vector, shape [P], and are cut at the same places. Holds one
    piece of each at a time. Both iterables are used up, also where nothing is left to compare.
    """
    entries = layout.entries
    squares = np.zeros((len(entries), 2))
    equal = [True] * len(entries)
    start, current = 0, 0
    for a, b in zip(first, second, strict=True):
        end = start + len(a)
        while current < len(entries) and entries[current].offset < end:
            entry = entries[current]
            inside = slice(max(entry.offset - start, 0), entry.offset + entry.size - start)
            if entry.kind != "integer":
                squares[current] += _squares(a[inside], b[inside])
            bits = a[inside].view(np.uint32), b[inside].view(np.uint32)
            equal[current] &= np.array_equal(*bits)
            if entry.offset + entry.size > end:
                break
            current += 1
        start = end
    return [
        TensorDistance(
            entry=entry,
            absolute=math.nan if entry.kind == "integer" else math.sqrt(square),
            norm=math.nan if entry.kind == "integer" else math.sqrt(norm_square),
            equal=same,
        )
        for entry, same, (square, norm_square) in zip(entries, equal, squares.tolist(), strict=True)
    ]


def parameter_distance(tensors: Sequence[TensorDistance]) -> Distance:
    """Return the distance over all parameters, which is what the history calls diversity."""
    parameters = [tensor for tensor in tensors if tensor.entry.kind == "parameter"]
    return Distance(
        absolute=math.hypot(*(tensor.absolute for tensor in parameters)),
        norm=math.hypot(*(tensor.norm for tensor in parameters)),
        equal=all(tensor.equal for tensor in parameters),
    )


def _squares(a: Piece, b: Piece) -> tuple[float, float]:
    """Return the sums of (a - b)^2 and a^2."""
    with np.errstate(invalid="ignore"):  # weights that are not finite
        wide = a.astype(np.float64)
        difference = wide - b
        return float(difference @ difference), float(wide @ wide)
