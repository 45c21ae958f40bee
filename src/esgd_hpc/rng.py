"""Where every random number comes from: streams keyed by what they are for, never by rank or group.

A stream is a Philox counter generator whose 128-bit key is a hash of
(seed, generation, step, uid, purpose, lane). Two ranks that need the same numbers make the same
stream; nothing is carried from one generation to the next, so a restart needs no generator state.
"""

import hashlib
import struct
from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a stream is for. The numbers are part of the result: never renumber, only append."""

    INITIAL_WEIGHTS = 1
    PERTURBATION = 2
    HYPERPARAMETERS = 3
    SAMPLE_ORDER = 4
    DROPOUT = 5
    BACK_OFF = 6
    PARENTS = 7
    MUTATION = 8
    SURVIVORS = 9
    RECALIBRATION = 10
    SKETCH = 11


def key(seed: int, generation: int, step: int, uid: int, purpose: Purpose, lane: int = 0) -> int:
    """Return the 128-bit key of one stream.

    `step` is the epoch in an SGD step and the evolution step v otherwise; `lane` tells apart what
    shares all else, such as the ranks of a group in dropout.
    """
    packed = struct.pack("<6q", seed, generation, step, uid, purpose, lane)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=16).digest(), "little")


def generator(stream_key: int) -> np.random.Generator:
    """Return the generator of a key from `key`, or of a noise seed of an individual."""
    return np.random.Generator(np.random.Philox(key=stream_key))


def stream(
    seed: int, generation: int, step: int, uid: int, purpose: Purpose, lane: int = 0
) -> np.random.Generator:
    """Return the generator for (seed, generation, step, uid, purpose, lane)."""
    return generator(key(seed, generation, step, uid, purpose, lane))


def torch_seed(
    seed: int, generation: int, step: int, uid: int, purpose: Purpose, lane: int = 0
) -> int:
    """Return a seed for `torch.manual_seed`, in [0, 2^63)."""
    return key(seed, generation, step, uid, purpose, lane) & (2**63 - 1)
