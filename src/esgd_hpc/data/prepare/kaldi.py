"""Makes a prepared file of Kaldi's features and pdf alignments, for bn50 and swb300.

    SOURCE/num_pdfs          the number of pdfs, a plain number
    SOURCE/train/            and dev/ (or validation/), and test/ where there is one, each with
        feats.scp            features, or feats.ark, feats.*.ark (as all tables below)
        ali.scp              pdf of each frame, from ali-to-pdf; test/ may be without
        utt2spk              speaker of each utterance, where a table has entries by speaker
        cmvn.scp             optional: statistics of speakers (or utterances), to be applied
        cmvn_opts            optional: --norm-vars=true where deviations are to be applied too
        ivectors.scp         optional: vectors of utterances or speakers, or online i-vectors, of
                             which the mean is taken

No file outside SOURCE is read, nor any command run that an scp file names. `am-info final.mdl`
tells the number of pdfs; final.mdl itself is not read.

Then features get mean 0 and deviation 1 over all training frames. Utterances pass one at a time.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from esgd_hpc.data.kaldi import (
    Entry,
    Matrix,
    library,
    read_labels,
    read_matrix,
    read_vector,
    table,
    text_lines,
)
from esgd_hpc.data.prepare import Say
from esgd_hpc.data.speech_store import FrameStatistics, SpeechWriter
from esgd_hpc.data.store import StoreWriter
from esgd_hpc.errors import InputError

_FOLDERS = {"train": ("train",), "validation": ("dev", "validation"), "test": ("test",)}
_MOST_UNUSABLE = 0.1
"""Share of a split's utterances that may be without an alignment of their length."""
_MOST_STATES = 10_000_000


class _Tables(NamedTuple):
    """What a split's folder has, by utterance or speaker."""

    split: str
    folder: Path
    features: dict[str, Entry]
    labels: dict[str, Entry] | None
    speakers: dict[str, str]
    cmvn: dict[str, Entry] | None
    scales: bool
    """Whether the statistics' deviations are applied as well as their means."""
    ivectors: dict[str, Entry] | None


class _Utterance(NamedTuple):
    key: str
    features: Matrix
    labels: npt.NDArray[np.int32] | None


def prepare(name: str, source: Path | None, writer: StoreWriter, say: Say) -> None:
    """Write the prepared file of a Kaldi data set; see the first lines of this module.

    An utterance whose alignment is missing or of another length is left out and counted. Raises
    InputError where that is more than a tenth of a split, and for files that are missing, damaged
    or hostile.
    """
    if source is None or not source.is_dir():
        given = source or "is missing"
        raise InputError(
            f"--source {given}: {name} needs a folder with num_pdfs, train, dev and"
            " test, which have feats.scp and ali.scp; `python -m pydoc esgd_hpc.data.prepare.kaldi`"
        )
    library()
    num_states = _num_states(source)
    found = [_tables(source, split) for split in _FOLDERS]
    splits = [tables for tables in found if tables is not None]
    statistics = FrameStatistics()
    num_features = 0
    for utterance in _utterances(splits[0], 0):
        statistics.add(utterance.features)
        num_features = utterance.features.shape[1]
    speech = SpeechWriter(writer, num_states)
    for tables in splits:
        count = frames = 0
        for utterance in _utterances(tables, num_features):
            key, features, labels = utterance
            ivector = None
            if tables.ivectors is not None:
                ivector = read_vector(_of(tables, tables.ivectors, key, "i-vector"))
            speech.add(tables.split, key, statistics.normalized(features), labels, ivector)
            count, frames = count + 1, frames + len(features)
        _check_share(tables, count)
        unlabelled = "" if tables.labels is not None else ", without alignments"
        say(
            f"{tables.split}: {frames:,} frames in {count:,} of {len(tables.features):,} utterances"
            f"{unlabelled}"
        )
    speech.finish()


def _num_states(source: Path) -> int:
    file = source / "num_pdfs"
    if not file.is_file():
        raise InputError(
            f"{file}: no such file; write the number of pdfs into it: `am-info final.mdl` tells it"
        )
    text = " ".join(line for _, line in text_lines(source, file))
    digits = text.lstrip("0")
    few = text.isascii() and text.isdecimal() and 0 < len(digits) <= len(str(_MOST_STATES))
    if not few or int(digits) > _MOST_STATES:
        raise InputError(f"{file}: {text[:40]!r}: expected one number, that of the pdfs")
    return int(digits)


def _tables(source: Path, split: str) -> _Tables | None:
    folders = [source / name for name in _FOLDERS[split] if (source / name).is_dir()]
    if not folders:
        if split == "test":
            return None
        raise InputError(f"{source}: has no folder {' or '.join(_FOLDERS[split])}")
    folder = folders[0]
    features = table(source, folder, "feats")
    if not features:
        raise InputError(f"{folder}: has neither feats.scp nor feats.ark with an utterance in it")
    labels = table(source, folder, "ali")
    if labels is None and (split != "test" or [*folder.glob("ali*.gz")]):
        raise InputError(
            f"{folder}: has neither ali.scp nor ali.ark; make pdfs of an alignment with `ali-to-pdf"
            f' final.mdl "ark:gunzip -c ali.*.gz|" ark:{folder}/ali.ark`'
        )
    return _Tables(
        split,
        folder,
        features,
        labels,
        _speakers(source, folder / "utt2spk"),
        table(source, folder, "cmvn"),
        _scales(source, folder / "cmvn_opts"),
        table(source, folder, "ivectors"),
    )


def _speakers(source: Path, file: Path) -> dict[str, str]:
    speakers = {}
    for number, line in _lines(source, file):
        words = line.split()
        if len(words) != 2:
            raise InputError(f"{file}:{number}: {line!r}: expected an utterance and its speaker")
        speakers[words[0]] = words[1]
    return speakers


def _scales(source: Path, file: Path) -> bool:
    options = [option for _, line in _lines(source, file) for option in line.split()]
    for option in options:
        if option not in ("--norm-means=true", "--norm-vars=true", "--norm-vars=false"):
            raise InputError(
                f"{file}: {option}: not applied here; run `apply-cmvn` and leave out cmvn.scp"
            )
    return "--norm-vars=true" in options


def _lines(source: Path, file: Path) -> list[tuple[int, str]]:
    """Return number and text of the lines of an optional file."""
    return [*text_lines(source, file)] if file.exists() else []


def _utterances(tables: _Tables, num_features: int) -> Iterator[_Utterance]:
    """Yield the usable utterances, with speakers' statistics applied.

    All have `num_features`, or where that is 0 as many as the first one.
    """
    for key, entry in tables.features.items():
        labels = None
        if tables.labels is not None:
            if key not in tables.labels:
                continue
            labels = read_labels(tables.labels[key])
        features = read_matrix(entry)
        if labels is not None and len(labels) != len(features):
            continue
        num_features = num_features or features.shape[1]
        if not len(features) or features.shape[1] != num_features:
            raise InputError(
                f"{entry}: features of shape {list(features.shape)}; others have {num_features} a"
                " frame, and at least one frame"
            )
        if tables.cmvn is not None:
            statistics = _of(tables, tables.cmvn, key, "cmvn")
            features = _normalized_by(statistics, features, tables.scales)
        if not np.isfinite(features).all():
            raise InputError(f"{entry}: features with NaN or infinity; compute them again")
        yield _Utterance(key, features, labels)


def _normalized_by(entry: Entry, features: Matrix, scales: bool) -> Matrix:
    """Apply statistics as Kaldi keeps them: sums with the count behind, and sums of squares."""
    statistics = read_matrix(entry).astype(np.float64)
    if statistics.shape != (2, features.shape[1] + 1) or not statistics[0, -1] > 0.0:
        raise InputError(
            f"{entry}: statistics of shape {list(statistics.shape)}; for {features.shape[1]}"
            f" features they have [2, {features.shape[1] + 1}] and a count above 0"
        )
    mean = statistics[0, :-1] / statistics[0, -1]
    shifted: npt.NDArray[np.float64] = features - mean
    if scales:
        variance = statistics[1, :-1] / statistics[0, -1] - np.square(mean)
        shifted /= np.sqrt(np.maximum(variance, 1e-20))
    return shifted.astype(np.float32)


def _of(tables: _Tables, entries: dict[str, Entry], key: str, what: str) -> Entry:
    """Return the entry of an utterance, or else of its speaker."""
    for name in (key, tables.speakers.get(key, key)):
        if name in entries:
            return entries[name]
    raise InputError(
        f"{tables.folder}: no {what} for utterance {key}, nor for its speaker"
        f" {tables.speakers.get(key, '(not in utt2spk)')}"
    )


def _check_share(tables: _Tables, count: int) -> None:
    total = len(tables.features)
    if total - count > _MOST_UNUSABLE * total:
        raise InputError(
            f"{tables.folder}: {total - count} of {total} utterances have no alignment of their"
            " length; align the same features, or take the utterances out of feats.scp"
        )
