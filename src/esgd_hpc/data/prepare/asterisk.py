"""How `esgd data prepare asterisk` aligns the telephone prompts of Asterisk with their texts.

The Debian package asterisk-core-sounds-en-wav has 568 prompts of one speaker, 25 minutes at 8 kHz;
asterisk-core-sounds-en says what is spoken in each, a line `name: text`. PocketSphinx and its model
of American English find the senone of each frame: a tied state of a phone in its context. It is
given the words, aligns them in a first pass and their states in a second. Stands in for SWB300.

A senone with few training frames counts as its phone's state without context.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.signal import resample_poly

from esgd_hpc.data.prepare import Say, StoreWriter
from esgd_hpc.data.prepare.acoustics import (
    FRAMES_PER_SECOND,
    Labels,
    Samples,
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

MIN_SENONE_FRAMES = 100
"""Training frames, a second of them, below which a senone loses its context."""

_TEXTS = Path("usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
_SOUNDS = Path("usr/share/asterisk/sounds/en_US_f_Allison")
_HERTZ = 8_000
_ALIGNER_HERTZ = 16_000
_HIGHEST_HERTZ = 3_800.0
_VALIDATION_EVERY = 10
_PAD_FRAMES = 10
"""Silence that is put around a prompt: one that is cut closely would not align."""

_REMARK = re.compile(r"\[.*?\]|\(.*?\)|<.*?>")
_BETWEEN_WORDS = re.compile(r"\s+|\.\.+|,")
_PUNCTUATION = '.!?;:"'
_SPOKEN = {"*": "star", "#": "pound", "&": "and", "1": "one", "2": "two", "3": "three", "4": "four"}
_SPOKEN |= {"0": "zero", "5": "five", "6": "six", "7": "seven", "8": "eight", "9": "nine"}
_PROMPT = re.compile(r"[\w-]+(/[\w-]+)*", re.ASCII)
_ANY = -1


class State(NamedTuple):
    """What a frame of an alignment belongs to."""

    phone: str
    position: int
    """Of the state in the phone: 0, 1 or 2."""
    senone: int
    """As the acoustic model numbers it; -1 stands for any."""


def prepare(name: str, source: Path | None, writer: StoreWriter, say: Say) -> None:
    """Write features and states of all prompts whose words PocketSphinx knows and aligns."""
    top = Path("/") if source is None else source
    texts = read_texts(_find(top, _TEXTS, Path.is_file))
    folder = _find(top, _SOUNDS, Path.is_dir)
    need_package("kaldi_native_fbank")
    aligner = Aligner()
    say(f"{folder}: aligning {len(texts)} prompts")
    left_out: Counter[str] = Counter()
    sounds: dict[str, Samples] = {}
    alignments: dict[str, list[State]] = {}
    for prompt, text in sorted(texts.items()):
        file = folder / f"{prompt}.wav"
        if not file.is_file():
            left_out["without sound"] += 1
        elif not (words := aligner.words(text)):
            left_out["without words" if words is not None else "with unknown words"] += 1
        else:
            samples = read_wav(file, _HERTZ)
            alignment = aligner.align(samples, words)
            if alignment is None:
                left_out["that do not align"] += 1
            else:
                sounds[prompt], alignments[prompt] = samples, alignment
    told = ", ".join(f"{count} {why}" for why, count in sorted(left_out.items()))
    say(f"{len(alignments)} aligned; left out: {told or 'none'}")
    splits = split_names(alignments, _VALIDATION_EVERY)
    numbers = state_numbers(alignments, [p for p in alignments if splits[p] == "train"])
    utterances = []
    for prompt, alignment in alignments.items():
        features = log_mel(sounds[prompt], _HERTZ, _HIGHEST_HERTZ)
        labels = frame_labels(alignment, numbers, len(features))
        utterances.append(Utterance(prompt, features, labels))
    num_states = len(numbers)
    write_normalized(utterances, splits, SpeechWriter(writer, num_states))
    num_free = sum(state.senone == _ANY for state in numbers)
    say(f"{num_states} states, {num_free} of them without context")
    say(sizes_told(utterances, splits))


def read_texts(file: Path) -> dict[str, str]:
    """Return what is spoken in each prompt, from a file of lines "name: text".

    Lines that begin with ; are remarks. Raises InputError with file and line where a line is of
    another form, or a name there twice or a path that leaves its folder.
    """
    texts: dict[str, str] = {}
    for place, line in read_lines(file):
        if line.startswith(";"):
            continue
        prompt, colon, text = line.partition(":")
        if not colon or not _PROMPT.fullmatch(prompt):
            raise InputError(f"{place}: {line[:40]!r}: expected a prompt's name, a colon, its text")
        if prompt in texts:
            raise InputError(f"{place}: {prompt} is there twice; get the package again")
        texts[prompt] = text.strip()
    return texts


class Aligner:
    """PocketSphinx with its model of American English."""

    def __init__(self) -> None:
        pocketsphinx = need_package("pocketsphinx")
        self._decoder: Any = pocketsphinx.Decoder(pocketsphinx.Config(lm=None, loglevel="FATAL"))

    def words(self, text: str) -> list[str] | None:
        """Return the words of a text as the dictionary has them; None where it lacks one.

        What is in brackets is not spoken; digits that stand alone are.
        """
        found: list[str] = []
        for token in _BETWEEN_WORDS.split(_REMARK.sub(" ", text.lower())):
            token = token.strip('"')
            if token in _SPOKEN:
                token = _SPOKEN[token]
            if not self._knows(token):  # the full stops of a.m. belong to it
                token = token.strip(_PUNCTUATION)
            for word in [token] if self._knows(token) else token.split("-"):
                word = _SPOKEN.get(word, word)
                if word and not self._knows(word):
                    return None
                found += [word] if word else []
        return found

    def align(self, samples: Samples, words: Sequence[str]) -> list[State] | None:
        """Return the state of each of the aligner's frames, 100 a second; None where that fails."""
        quiet = np.zeros(_PAD_FRAMES * _HERTZ // FRAMES_PER_SECOND)
        padded = np.concatenate([quiet, samples, quiet])
        upsampled = resample_poly(padded, _ALIGNER_HERTZ // _HERTZ, 1)
        sound = np.clip(np.rint(upsampled), -(2**15), 2**15 - 1).astype("<i2").tobytes()
        try:
            self._decoder.set_align_text(" ".join(words))
            self._pass(sound)
            self._decoder.set_alignment()
            self._pass(sound)
            return list(self._frames())[_PAD_FRAMES:-_PAD_FRAMES] or None
        except RuntimeError:  # the words do not fit the sound
            return None

    def _frames(self) -> Iterator[State]:
        for word in self._decoder.get_alignment():
            for phone in word:
                for position, state in enumerate(phone):
                    yield from [State(phone.name, position, int(state.name))] * state.duration

    def _pass(self, sound: bytes) -> None:
        self._decoder.reinit_feat()  # forget the noise of the sound before
        self._decoder.start_utt()
        self._decoder.process_raw(sound, full_utt=True)
        self._decoder.end_utt()

    def _knows(self, word: str) -> bool:
        return bool(word) and self._decoder.lookup_word(word) is not None


def state_numbers(
    alignments: Mapping[str, Sequence[State]], training: Sequence[str]
) -> dict[State, int]:
    """Return a number for each state without context, then for each senone that is not rare.

    A senone is rare that fewer than `MIN_SENONE_FRAMES` frames of the training prompts have. States
    without context are there for rare senones alone. Both parts are sorted, so that the numbers
    follow from the alignments.
    """
    counts: Counter[State] = Counter()
    for prompt in training:
        counts.update(alignments[prompt])
    frequent = sorted(state for state, count in counts.items() if count >= MIN_SENONE_FRAMES)
    seen = {state for alignment in alignments.values() for state in alignment}
    free = sorted({state._replace(senone=_ANY) for state in seen.difference(frequent)})
    return {state: number for number, state in enumerate([*free, *frequent])}


def frame_labels(
    alignment: Sequence[State], numbers: Mapping[State, int], num_frames: int
) -> Labels:
    """Return the number of each frame's state, shape [num_frames].

    The middle of the aligner's frame t is about 8 ms later than that of ours, so ours is best
    described by the aligner's frame t - 1.
    """
    labels = [
        numbers[state] if state in numbers else numbers[state._replace(senone=_ANY)]
        for state in alignment
    ]
    places = np.clip(np.arange(num_frames) - 1, 0, len(labels) - 1)
    return np.array(labels, dtype=np.int32)[places]


def _find(top: Path, place: Path, is_there: Callable[[Path], bool]) -> Path:
    for found in (top / place, top / place.name):
        if is_there(found):
            return found
    raise InputError(
        f"{top}: has no {place}; install the Debian packages asterisk-core-sounds-en and"
        " asterisk-core-sounds-en-wav, or unpack both into one folder (dpkg-deb -x) and give it"
        " with --source"
    )
