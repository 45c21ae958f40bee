"""Which frames a network sees at once: spliced neighbours, or segments of an utterance.

Utterances are rows (first frame, end), int64 [U, 2], one after the other without gaps.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Places = npt.NDArray[np.int64]


def bounds(utterances: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the utterance of each frame, its first frame and its end, int64 [n] each."""
    which = torch.searchsorted(utterances[:, 1].contiguous(), frames, right=True)
    first, end = utterances[which].unbind(dim=1)
    return which, first, end


def splice(features: Tensor, utterances: Tensor, frames: Tensor, context: int) -> Tensor:
    """Return each frame with `context` neighbours on both sides, [n, (2 context + 1) D].

    Beyond the ends of an utterance its first and last frame are repeated.
    """
    _, first, end = bounds(utterances, frames)
    offsets = torch.arange(-context, context + 1, device=frames.device)
    places = frames[:, None] + offsets
    places = torch.minimum(torch.maximum(places, first[:, None]), end[:, None] - 1)
    return features[places].flatten(1)


class Segments(NamedTuple):
    """Runs of frames of one length, of which each frame of an utterance is new in one."""

    starts: Places
    """First frame of each, shape [N]."""
    skips: Places
    """How many of its first frames an earlier segment has as well."""
    num_new: Places
    """How many frames are new in it."""


def cut_into_segments(utterances: npt.NDArray[Any], length: int) -> Segments:
    """Return the segments of `length` frames that cover all utterances.

    The last segment of an utterance is shifted back so that it ends with it. An utterance that is
    shorter than a segment has one, which reaches beyond its end.
    """
    first, end = utterances[:, 0], utterances[:, 1]
    counts = -(-(end - first) // length)
    which = np.repeat(np.arange(len(utterances)), counts)
    place = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
    wanted = first[which] + place * length
    starts = np.maximum(np.minimum(wanted, end[which] - length), first[which])
    return Segments(starts, wanted - starts, np.minimum(end[which] - wanted, length))


def segment_frames(
    utterances: Tensor, starts: Tensor, skips: Tensor, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the frames of segments [n, length], which of them are new, and the utterances [n].

    Beyond the end of a short utterance its last frame is repeated, and not new.
    """
    which, _, end = bounds(utterances, starts)
    offsets = torch.arange(length, device=starts.device)
    places = starts[:, None] + offsets
    is_new = (offsets >= skips[:, None]) & (places < end[:, None])
    return torch.minimum(places, end[:, None] - 1), is_new, which
