"""How a network lies in one flat float32 vector: which tensor is where, and of what kind.

    [ parameters | floating buffers | integer buffers ]

Parameters are recombined and mutated (Eq. 12), each tied one once. Floating buffers (BatchNorm mean
and variance) are averaged, never mutated. Integer buffers are stored bit for bit and come from
the first parent. Knows no torch, so that evolution and checkpoints can use it alone.
"""

from typing import Literal

import msgspec

Kind = Literal["parameter", "buffer", "integer"]


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of the network."""

    name: str
    """As in `state_dict`; of tied parameters the first name."""
    offset: int
    """First float32 place in the flat vector."""
    size: int
    """Number of float32 places (4 bytes each, also for integer buffers, padded up)."""
    shape: tuple[int, ...]
    kind: Kind
    dtype: str
    """NumPy name of the type, "float32" except for integer buffers."""


class Layout(msgspec.Struct, frozen=True):
    """All tensors of a network in the order in which they lie in the flat vector."""

    entries: tuple[Entry, ...]
    aliases: dict[str, str] = {}
    """Other names in `state_dict` of tied tensors, to the name that their entry has."""

    @property
    def num_parameters(self) -> int:
        """Places 0 .. num_parameters hold parameters."""
        return sum(entry.size for entry in self.entries if entry.kind == "parameter")

    @property
    def num_floats(self) -> int:
        """Places 0 .. num_floats hold parameters and floating buffers, which are averaged."""
        return sum(entry.size for entry in self.entries if entry.kind != "integer")

    @property
    def size(self) -> int:
        """Length P of the flat vector in float32 places."""
        return sum(entry.size for entry in self.entries)
