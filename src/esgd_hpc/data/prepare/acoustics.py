"""How sound becomes feature frames, and which utterances train: shared by the speech stand-ins.

Frames are 40 log energies of mel filters, one every 10 ms, each from a window of 25 ms around its
middle, as Kaldi computes them, without the noise that Kaldi adds by default.
"""

import gzip
import wave
import zlib
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from esgd_hpc.data.speech_store import FrameStatistics, SpeechWriter
from esgd_hpc.errors import InputError

NUM_BINS = 40
FRAMES_PER_SECOND = 100
_LOWEST_HERTZ = 20.0
_SAMPLE_BYTES = 2
_MAX_SECONDS = 600
_MAX_TEXT_BYTES = 2**20
_TEST_EVERY = 10
_TEST_PLACE = 8
_VALIDATION_PLACE = 3

Samples = npt.NDArray[np.int16]
Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]


class Utterance(NamedTuple):
    """One utterance on its way into the prepared file."""

    name: str
    features: Features
    """Shape [T, NUM_BINS], not normalized."""
    labels: Labels
    """The state of each frame, shape [T]."""
    phones: list[int] | None = None
    """As they were spoken, where the data set has a phone bigram."""


def need_package(module: str) -> Any:
    """Return an optional package. Raises InputError that says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f'preparing speech needs the Python package {module}: `pip install "esgd-hpc[data]"`'
            f" ({error})"
        ) from None


def read_wav(file: Path, hertz: int) -> Samples:
    """Return the samples of a WAV file: one channel, 16 bits, of the given rate.

    Raises InputError where the file is missing, cut off or of another kind. A header that promises
    more than the file holds costs no memory.
    """
    try:
        with open(file, "rb") as raw, wave.open(raw) as sound:
            found = (sound.getnchannels(), 8 * sound.getsampwidth(), sound.getframerate())
            if found != (1, 8 * _SAMPLE_BYTES, hertz):
                raise InputError(
                    f"{file}: channels, bits and samples a second are {found}; expected"
                    f" {(1, 8 * _SAMPLE_BYTES, hertz)}"
                )
            num_samples = sound.getnframes()
            num_bytes = _SAMPLE_BYTES * num_samples
            if not 0 < num_samples <= _MAX_SECONDS * hertz:
                raise InputError(
                    f"{file}: {num_samples / hertz:g} seconds; expected more than 0 and at most"
                    f" {_MAX_SECONDS}"
                )
            content = sound.readframes(num_samples)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; get the package again") from None
    except (wave.Error, EOFError) as error:
        reason = str(error) or "it ends too early"
        raise InputError(f"{file}: not a WAV file: {reason}; get the package again") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
    if len(content) != num_bytes:
        raise InputError(
            f"{file}: cut off: {len(content)} bytes of sound, its header says {num_bytes}; get the"
            " package again"
        )
    return np.frombuffer(content, "<i2").astype(np.int16)


def log_mel(samples: Samples, hertz: int, highest_hertz: float) -> Features:
    """Return the frames of a sound, shape [n / (hertz / 100) rounded, NUM_BINS].

    Frame t is about the time (t + 1/2) / 100 seconds. Filters lie between 20 Hz and
    `highest_hertz`.
    """
    fbank = need_package("kaldi_native_fbank")
    options = fbank.FbankOptions()
    options.frame_opts.samp_freq = hertz
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins = NUM_BINS
    options.mel_opts.low_freq = _LOWEST_HERTZ
    options.mel_opts.high_freq = highest_hertz
    computer = fbank.OnlineFbank(options)
    computer.accept_waveform(hertz, samples.astype(np.float32))
    computer.input_finished()
    frames = [computer.get_frame(index) for index in range(computer.num_frames_ready)]
    return np.array(frames, dtype=np.float32).reshape(-1, NUM_BINS)


def split_names(names: Iterable[str], validation_every: int) -> Mapping[str, str]:
    """Return train, validation or test for each utterance, by its place in alphabetical order.

    One of ten tests, one of `validation_every`, a multiple of ten, validates.
    """
    splits: dict[str, str] = {}
    for place, name in enumerate(sorted(names)):
        is_validation = place % validation_every == _VALIDATION_PLACE
        is_test = place % _TEST_EVERY == _TEST_PLACE
        splits[name] = "validation" if is_validation else "test" if is_test else "train"
    return splits


def write_normalized(
    utterances: list[Utterance], splits: Mapping[str, str], speech: SpeechWriter
) -> None:
    """Write the utterances, with mean 0 and deviation 1 over all training frames."""
    statistics = FrameStatistics()
    for utterance in utterances:
        if splits[utterance.name] == "train":
            statistics.add(utterance.features)
    for utterance in utterances:
        speech.add(
            splits[utterance.name],
            utterance.name,
            statistics.normalized(utterance.features),
            utterance.labels,
            phones=utterance.phones,
        )
    speech.finish()


def read_lines(file: Path) -> list[tuple[str, str]]:
    """Return "file:number" for messages and the stripped text of each line that is not empty.

    A file whose name ends in .gz is unpacked. Raises InputError where it is missing, damaged or
    larger than any list of labels or prompts.
    """
    opened_by = gzip.open if file.suffix == ".gz" else open
    try:
        with opened_by(file, "rb") as opened:
            content = opened.read(_MAX_TEXT_BYTES + 1)
    except OSError as error:  # gzip.BadGzipFile is one
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise InputError(f"{file}: the gzip stream is damaged: {error}") from None
    if len(content) > _MAX_TEXT_BYTES:
        raise InputError(f"{file}: larger than {_MAX_TEXT_BYTES} bytes; get the package again")
    lines = content.decode("utf-8", "replace").splitlines()
    return [(f"{file}:{n}", line.strip()) for n, line in enumerate(lines, 1) if line.strip()]


def sizes_told(utterances: list[Utterance], splits: Mapping[str, str]) -> str:
    """Return how many utterances and minutes each split has, in words."""
    told = []
    for split in ("train", "validation", "test"):
        lengths = [len(u.labels) for u in utterances if splits[u.name] == split]
        minutes = sum(lengths) / FRAMES_PER_SECOND / 60
        told.append(f"{split} {len(lengths)} utterances, {minutes:.1f} minutes")
    return "; ".join(told)
