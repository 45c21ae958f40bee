"""How `esgd data prepare festvox-ru` reads the recordings of a Russian voice of Festival.

The Debian package festvox-ru has 620 sentences of one speaker, 1.66 hours at 16 kHz, in wav/, and
in lab/ when each phone ends:

    #
    0.34200 125 pau        end in seconds, a number without meaning, the phone

A frame's state is its phone's first, middle or last third. It stands in for BN50.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esgd_hpc.data.prepare import Say, StoreWriter
from esgd_hpc.data.prepare.acoustics import (
    FRAMES_PER_SECOND,
    Labels,
    Utterance,
    log_mel,
    need_package,
    read_lines,
    read_wav,
    sizes_told,
    split_names,
    write_normalized,
)
from esgd_hpc.data.speech_store import SpeechWriter
from esgd_hpc.errors import InputError

PAUSE = "pau"
_PHONES = (
    "a aa ae ay b bb c ch d dd e ee f ff g gg h hh i ii j k kk l ll m mm n nn oo p pau pp r rr s"
    " sch sh ss t tt u ur uu v vv y yy z zh zz"
)
PHONES = tuple(_PHONES.split())
STATES_PER_PHONE = 3

_FOLDER = Path("usr/share/festival/voices/russian/msu_ru_nsh_clunits")
_HERTZ = 16_000
_HIGHEST_HERTZ = 7_600.0
_VALIDATION_EVERY = 30
"""One utterance of so many: each child of a population is scored on all of them."""
_SLACK_SECONDS = 0.01
"""A label file may say that the sound is so much longer than it is: times are rounded."""


def prepare(name: str, source: Path | None, writer: StoreWriter, say: Say) -> None:
    """Write features, thirds of phones, and a bigram of phones."""
    folder = _voice_folder(source)
    names = _utterance_names(folder)
    splits = split_names(names, _VALIDATION_EVERY)
    need_package("kaldi_native_fbank")
    say(f"{folder}: {len(names)} utterances")
    utterances = [read_utterance(folder, name) for name in names]
    speech = SpeechWriter(writer, STATES_PER_PHONE * len(PHONES))
    spoken = [u.phones for u in utterances if u.phones and splits[u.name] == "train"]
    phone_of_state = np.repeat(np.arange(len(PHONES)), STATES_PER_PHONE)
    speech.add_phones(PHONES, phone_of_state, phone_bigram(spoken, len(PHONES)))
    write_normalized(utterances, splits, speech)
    say(sizes_told(utterances, splits))


def read_utterance(folder: Path, name: str) -> Utterance:
    """Return one utterance of the voice's folder.

    Raises InputError, which names file and line, where sound and labels are not whole or do not
    belong together.
    """
    samples = read_wav(folder / "wav" / f"{name}.wav", _HERTZ)
    phones, ends = read_labels(folder / "lab" / f"{name}.lab", len(samples) / _HERTZ)
    features = log_mel(samples, _HERTZ, _HIGHEST_HERTZ)
    labels = thirds(phones, ends, len(features))
    pause = PHONES.index(PAUSE)
    merged = [phones[0], *(b for a, b in pairwise(phones) if not a == b == pause)]
    return Utterance(name, features, labels, merged)


def read_labels(file: Path, seconds: float) -> tuple[list[int], list[float]]:
    """Return the numbers of the phones and when each ends, from a label file.

    `seconds` is the length of the sound. Raises InputError with file and line where a line is of
    another form, a phone unknown or shorter than a frame for each of its states, a time not above
    the one before or after the end of the sound.
    """
    header, *lines = read_lines(file) or [(str(file), "")]
    if header[1] != "#":
        raise InputError(f"{header[0]}: {header[1][:40]!r}: expected # in the first line")
    phones: list[int] = []
    ends: list[float] = []
    shortest = STATES_PER_PHONE / FRAMES_PER_SECOND - 1e-6
    before = 0.0
    for place, line in lines:
        fields = line.split()
        try:
            end, phone = float(fields[0]), PHONES.index(fields[2])
        except (ValueError, IndexError):
            raise InputError(
                f"{place}: {line[:40]!r}: expected the end in seconds, a number, and one of the"
                f" phones {_PHONES}"
            ) from None
        if not before + shortest <= end <= seconds + _SLACK_SECONDS:
            raise InputError(
                f"{place}: {line[:40]!r}: the phone ends at {end:g} s; expected at least"
                f" {shortest:.2f} s after the one before ({before:g} s) and not after the end of"
                f" the sound ({seconds:g} s)"
            )
        phones.append(phone)
        ends.append(end)
        before = end
    if not phones:
        raise InputError(f"{file}: no phones; get the package again")
    return phones, ends


def thirds(phones: Sequence[int], ends: Sequence[float], num_frames: int) -> Labels:
    """Return the state of each frame: which third of which phone its middle lies in.

    State 3 p + i is the third i of phone p; frames after the last phone belong to its last third.
    """
    middles = (np.arange(num_frames) + 0.5) / FRAMES_PER_SECOND
    which = np.searchsorted(ends, middles, side="right")
    which = np.minimum(which, len(phones) - 1)
    begin = np.searchsorted(which, np.arange(len(phones)))
    length = np.bincount(which, minlength=len(phones))
    third = STATES_PER_PHONE * (np.arange(num_frames) - begin[which]) // length[which]
    states: Labels = (STATES_PER_PHONE * np.asarray(phones)[which] + third).astype(np.int32)
    return states


def phone_bigram(spoken: Sequence[Sequence[int]], num_phones: int) -> npt.NDArray[np.float32]:
    """Return log probabilities of a phone (column) after another (row), shape [P + 1, P].

    The last row is for the first phone. Pairs are counted and one is added to each count, so that
    none is impossible.
    """
    counts = np.ones((num_phones + 1, num_phones))
    for phones in spoken:
        np.add.at(counts, ([num_phones, *phones[:-1]], list(phones)), 1)
    bigram: npt.NDArray[np.float32] = np.log(counts / counts.sum(axis=1, keepdims=True))
    return bigram.astype(np.float32)


# Files --------------------------------------------------------------------------------------------


def _voice_folder(source: Path | None) -> Path:
    top = Path("/") if source is None else source
    for folder in (top, top / _FOLDER):
        if (folder / "lab").is_dir() and (folder / "wav").is_dir():
            return folder
    raise InputError(
        f"{top}: has no {_FOLDER} with lab and wav; install the Debian package festvox-ru, or"
        " unpack it anywhere (dpkg-deb -x) and give that folder with --source"
    )


def _utterance_names(folder: Path) -> list[str]:
    sounds = {file.stem for file in (folder / "wav").glob("*.wav")}
    labels = {file.stem for file in (folder / "lab").glob("*.lab")}
    alone = sorted(sounds ^ labels)
    if alone or not sounds:
        missing = f"{alone[0]} is" if alone else "there are none"
        raise InputError(
            f"{folder}: wav and lab must have the same utterances, but {missing}"
            f"{' only in one of them' if alone else ''}; get the package again"
        )
    return sorted(sounds)
