"""Speech that Debian packages carry: features, labels and alignments, and files that lie."""

import gzip
import shutil
import struct
import wave
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from esgd_hpc.data.prepare import acoustics, asterisk, festvox_ru
from esgd_hpc.data.prepare.acoustics import log_mel, read_lines, read_wav, split_names
from esgd_hpc.data.prepare.asterisk import Aligner, State, frame_labels, read_texts, state_numbers
from esgd_hpc.data.prepare.festvox_ru import PHONES, phone_bigram, read_labels, thirds
from esgd_hpc.data.speech_store import open_speech, utterance_ids
from esgd_hpc.data.store import read, writing
from esgd_hpc.errors import InputError

VOICE = Path("/usr/share/festival/voices/russian/msu_ru_nsh_clunits")
SOUNDS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")

needs_voice = pytest.mark.skipif(not VOICE.is_dir(), reason="needs Debian's festvox-ru")
needs_prompts = pytest.mark.skipif(
    not (SOUNDS.is_dir() and TEXTS.is_file()),
    reason="needs Debian's asterisk-core-sounds-en and asterisk-core-sounds-en-wav",
)


def write_wav(file: Path, samples: np.ndarray, hertz: int = 16_000, channels: int = 1) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(file), "wb") as sound:
        sound.setnchannels(channels)
        sound.setsampwidth(2)
        sound.setframerate(hertz)
        sound.writeframes(samples.astype("<i2").tobytes())
    return file


def tone(hertz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    times = np.arange(round(rate * seconds)) / rate
    return (8000 * np.sin(2 * np.pi * hertz * times)).astype(np.int16)


# Sound --------------------------------------------------------------------------------------------


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    samples = tone(440.0, 16_000)
    assert (read_wav(write_wav(tmp_path / "a.wav", samples), 16_000) == samples).all()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def promise_more(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[40:44] = struct.pack("<I", 2**20)  # the size of the data chunk
    file.write_bytes(content)


def promise_hours(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4:8] = content[40:44] = struct.pack("<I", 2**32 - 2)
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda file: file.unlink(), "no such file"),
        (lambda file: file.write_bytes(b""), "not a WAV file"),
        (lambda file: file.write_bytes(b"OggS" + bytes(100)), "not a WAV file"),
        (lambda file: file.write_bytes(file.read_bytes()[:30]), "not a WAV file"),
        (cut, "cut off"),
        (promise_more, "cut off"),
        (promise_hours, "seconds; expected"),
        (lambda file: write_wav(file, np.zeros(0)), "0 seconds"),
        (lambda file: write_wav(file, tone(440.0, 8000), 8000), r"\(1, 16, 8000\); expected"),
        (lambda file: write_wav(file, tone(440.0, 8000), channels=2), r"\(2, 16, 16000\)"),
    ],
)
def test_sound_that_is_not_whole_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], told: str
) -> None:
    file = write_wav(tmp_path / "a.wav", tone(440.0, 16_000))
    damage(file)
    with pytest.raises(InputError, match=told) as raised:
        read_wav(file, 16_000)
    assert str(file) in str(raised.value)


def test_features_are_the_same_each_time_and_find_a_tone() -> None:
    pytest.importorskip("kaldi_native_fbank", reason="needs kaldi-native-fbank")
    low, high = log_mel(tone(300.0, 8000), 8000, 3800.0), log_mel(tone(3000.0, 8000), 8000, 3800.0)
    assert low.shape == (100, 40)
    assert low.dtype == np.float32
    assert np.array_equal(low, log_mel(tone(300.0, 8000), 8000, 3800.0))
    # On the mel scale, 1127 ln(1 + f / 700), filters are evenly spaced from 20 to 3800 Hz.
    for frames, hertz in ((low, 300.0), (high, 3000.0)):
        mel_20, mel_top, mel = (1127 * np.log(1 + f / 700) for f in (20.0, 3800.0, hertz))
        expected = 41 * (mel - mel_20) / (mel_top - mel_20) - 1
        assert abs(frames[50].argmax() - expected) <= 1


def test_a_package_that_is_missing_is_named_with_what_installs_it() -> None:
    with pytest.raises(InputError, match=r'no_such_one: `pip install "esgd-hpc\[data\]"`'):
        acoustics.need_package("no_such_one")


def test_splits_are_whole_and_depend_on_names_alone() -> None:
    names = [f"u{n:03}" for n in range(100)]
    splits = split_names(reversed(names), 20)
    assert splits == split_names(names, 20)
    counts = {split: list(splits.values()).count(split) for split in set(splits.values())}
    assert counts == {"train": 85, "validation": 5, "test": 10}


# festvox-ru ---------------------------------------------------------------------------------------


def test_thirds_of_phones_label_the_frames_whose_middles_they_have() -> None:
    labels = thirds([5, 2], [0.03, 0.10], 11)
    # Middles at 5, 15, ... ms: three frames of phone 5, seven of phone 2, one after the end.
    assert labels.tolist() == [15, 16, 17, 6, 6, 6, 7, 7, 7, 8, 8]


def test_the_bigram_counts_pairs_and_forbids_none() -> None:
    found = np.exp(phone_bigram([[0, 1, 0, 1], [0]], 2))
    assert found == pytest.approx(np.array([[1 / 4, 3 / 4], [2 / 3, 1 / 3], [3 / 4, 1 / 4]]))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "expected # in the first line"),
        ("0.5 125 a\n", ":1: '0.5 125 a': expected #"),
        ("#\n", "no phones"),
        ("#\n0.5 125\n", ":2: '0.5 125': expected the end"),
        ("#\nsoon 125 a\n", ":2: 'soon 125 a': expected the end"),
        ("#\n0.5 125 a\n\n0.7 125 qq\n", ":4: '0.7 125 qq': expected the end"),
        ("#\n0.5 125 a\n0.4 125 i\n", ":3: '0.4 125 i': the phone ends at 0.4 s"),
        ("#\n0.5 125 a\n0.51 125 i\n", ":3: .*at least 0.03 s after the one before"),
        ("#\n0.5 125 a\n1.2 125 i\n", r":3: .*not after the end of the sound \(1 s\)"),
        ("#\nnan 125 a\n", ":2: .*the phone ends at nan"),
        ("#\n-inf 125 a\n", ":2: .*the phone ends at -inf"),
        ("#\n" + "x" * 2**20, "larger than"),
    ],
)
def test_labels_that_lie_are_refused(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "a.lab"
    file.write_text(content)
    with pytest.raises(InputError, match=told) as raised:
        read_labels(file, 1.0)
    assert str(file) in str(raised.value)


@pytest.fixture
def small_voice(tmp_path: Path) -> Path:
    """Twelve utterances, as the package has them in a folder into which it was unpacked."""
    folder = tmp_path / "unpacked" / VOICE.relative_to("/")
    for kind, suffix in (("wav", ".wav"), ("lab", ".lab")):
        (folder / kind).mkdir(parents=True)
        for file in sorted((VOICE / kind).iterdir())[:12]:
            assert file.suffix == suffix
            shutil.copy(file, folder / kind)
    return tmp_path / "unpacked"


def prepare_voice(source: Path, file: Path) -> list[str]:
    told: list[str] = []
    with writing(file, "festvox-ru") as writer:
        festvox_ru.prepare("festvox-ru", source, writer, told.append)
    return told


@needs_voice
def test_a_small_voice_is_prepared_whole(small_voice: Path, tmp_path: Path) -> None:
    pytest.importorskip("kaldi_native_fbank", reason="needs kaldi-native-fbank")
    told = prepare_voice(small_voice, tmp_path / "festvox-ru.h5")
    assert told[-1].startswith("train 10 utterances")
    store = open_speech("festvox-ru", str(tmp_path))
    assert store.attributes["phones"] == list(PHONES)
    assert store.attributes["num_states"] == 153
    assert utterance_ids(store, "test") == ["ru_0010"]
    features, labels = read(store["train/features"]), read(store["train/labels"])
    assert features.mean(axis=0) == pytest.approx(np.zeros(40), abs=1e-4)
    assert features.std(axis=0) == pytest.approx(np.ones(40), abs=1e-4)
    assert read(store["phone_of_state"])[labels].max() < 51
    bigram = read(store["phone_bigram"])
    assert np.exp(bigram).sum(axis=1) == pytest.approx(np.ones(52), abs=1e-5)

    # The labels say what the label file says: 0.392 s is where the first pause and "k" end.
    own = labels[: read(store["train/utterances"])[0, 1]]
    spoken = [PHONES[state // 3] for state in own]
    lines = (small_voice / VOICE.relative_to("/") / "lab" / "ru_0001.lab").read_text().split("\n")
    for line in filter(None, lines[1:]):
        end, _, phone = line.split()
        assert spoken[round(float(end) * 100) - 1] == phone
    phones = read(store["train/phones"])[: read(store["train/phone_ends"])[0]].tolist()
    assert [PHONES[p] for p in phones[:4]] == ["pau", "k", "ay", "rr"]
    runs = [state // 3 for state, last in zip(own[1:], own, strict=False) if state == last + 1]
    assert set(runs) <= set(phones)

    prepare_voice(small_voice, tmp_path / "again" / "festvox-ru.h5")
    with h5py.File(store.file) as one, h5py.File(tmp_path / "again" / "festvox-ru.h5") as two:
        names: list[str] = []
        one.visit(lambda name: names.append(name))
        sums = [name for name in names if isinstance(one[name], h5py.Dataset)]
        assert len(sums) > 15
        assert all(one[n].attrs["crc32"] == two[n].attrs["crc32"] for n in sums)


@needs_voice
def test_a_voice_without_a_partner_is_refused_and_leaves_no_file(
    small_voice: Path, tmp_path: Path
) -> None:
    (small_voice / VOICE.relative_to("/") / "lab" / "ru_0004.lab").unlink()
    with pytest.raises(InputError, match="ru_0004 is only in one of them"):
        prepare_voice(small_voice, tmp_path / "festvox-ru.h5")
    assert not (tmp_path / "festvox-ru.h5").exists()
    with pytest.raises(InputError, match="install the Debian package festvox-ru"):
        prepare_voice(tmp_path, tmp_path / "festvox-ru.h5")


# asterisk -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    pytest.importorskip("pocketsphinx", reason="needs pocketsphinx")
    return Aligner()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Press 1, or * to re-enter...", ["press", "one", "or", "star", "to", "re", "enter"]),
        ("at [@] (a note) <beep>", ["at"]),
        ('A.M. "hello"! #', ["a.m.", "hello", "pound"]),
        ("Call-Forward Unconditional.", ["call", "forward", "unconditional"]),
        ("[sound of monkeys screaming]", []),
        ("dial 8500", None),
        ("xyzzyx", None),
    ],
)
def test_texts_become_words_of_the_dictionary(
    aligner: Aligner, text: str, words: list[str] | None
) -> None:
    assert aligner.words(text) == words


def pronunciations(aligner: Aligner, word: str) -> list[str]:
    """Return the phones of each way to say a word of the dictionary, such as "Y UH R"."""
    ways: list[str] = []
    while way := aligner._decoder.lookup_word(f"{word}({len(ways) + 1})" if ways else word):
        ways.append(way)
    return ways


@needs_prompts
@pytest.mark.parametrize("prompt", ["agent-loginok", "conf-leaderhasleft", "vm-goodbye"])
def test_an_alignment_says_what_the_dictionary_says(aligner: Aligner, prompt: str) -> None:
    words = aligner.words(read_texts(TEXTS)[prompt])
    assert words
    samples = read_wav(SOUNDS / f"{prompt}.wav", 8000)
    frames = aligner.align(samples, words)
    assert frames is not None
    assert abs(len(frames) - len(samples) / 80) <= 2
    assert len({state.senone for state in frames}) > 8
    # Phones that begin: the first state after another one. Between words may be silence.
    spoken = [
        b.phone
        for a, b in zip([None, *frames], frames, strict=False)
        if b.position == 0 and (a is None or a != b)
    ]
    for word in words:
        ways = [way.split() for way in pronunciations(aligner, word)]
        while spoken and spoken[0] == "SIL":
            spoken = spoken[1:]
        fitting = [way for way in ways if spoken[: len(way)] == way]
        assert fitting, f"{word}: {spoken[:6]} is none of {ways}"
        spoken = spoken[len(max(fitting, key=len)) :]
    assert set(spoken) <= {"SIL"}
    assert aligner.align(samples, words) == frames


@needs_prompts
def test_words_that_were_not_spoken_do_not_align(aligner: Aligner) -> None:
    samples = read_wav(SOUNDS / "vm-goodbye.wav", 8000)
    assert aligner.align(samples, ["conference"] * 40) is None
    assert aligner.align(samples, ["goodbye"]) is not None


def test_rare_senones_lose_their_context(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asterisk, "MIN_SENONE_FRAMES", 3)
    often, rare, new = State("AA", 0, 7), State("AA", 0, 9), State("B", 2, 4)
    alignments = {"one": [often] * 3 + [rare], "two": [new] * 5}
    numbers = state_numbers(alignments, ["one"])
    free_a, free_b = State("AA", 0, -1), State("B", 2, -1)
    assert numbers == {free_a: 0, free_b: 1, often: 2}
    # One frame later: the aligner's frames are about 8 ms behind.
    assert frame_labels(alignments["one"], numbers, 6).tolist() == [2, 2, 2, 2, 0, 0]
    assert frame_labels(alignments["two"], numbers, 2).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("; a remark\n\nhello\n", ":3: 'hello': expected a prompt's name"),
        ("../../etc/passwd: hello\n", ":1: .*expected a prompt's name"),
        ("/etc/passwd: hello\n", ":1: .*expected a prompt's name"),
        ("a/b: one\nc: two\na/b: three\n", ":3: a/b is there twice"),
    ],
)
def test_lists_of_prompts_that_lie_are_refused(tmp_path: Path, content: str, told: str) -> None:
    file = tmp_path / "texts.txt.gz"
    file.write_bytes(gzip.compress(content.encode()))
    with pytest.raises(InputError, match=told):
        read_texts(file)


def test_packed_texts_are_read_no_further_than_any_list_is_long(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt.gz"
    file.write_bytes(gzip.compress(bytes(2**25)))
    with pytest.raises(InputError, match="larger than 1048576 bytes"):
        read_lines(file)
    file.write_bytes(gzip.compress(b"a: hello\n" * 99)[:-9])
    with pytest.raises(InputError, match="gzip stream is damaged"):
        read_lines(file)
    file.write_bytes(b"a: hello\n")
    with pytest.raises(InputError, match="cannot be read"):
        read_lines(file)


@needs_prompts
def test_a_few_prompts_are_prepared_whole(aligner: Aligner, tmp_path: Path) -> None:
    pytest.importorskip("kaldi_native_fbank", reason="needs kaldi-native-fbank")
    source = tmp_path / "unpacked"
    sounds = source / SOUNDS.relative_to("/")
    lines = ["; twelve prompts, one of unknown words, one without words, one without sound"]
    for prompt in sorted(p.stem for p in SOUNDS.glob("vm-*.wav"))[:12]:
        lines.append(f"{prompt}: {read_texts(TEXTS)[prompt]}")
        sounds.mkdir(parents=True, exist_ok=True)
        shutil.copy(SOUNDS / f"{prompt}.wav", sounds)
    shutil.copy(SOUNDS / "beep.wav", sounds)
    lines += ["beep: [a beep]", "none: hello"]
    write_wav(sounds / "odd.wav", tone(440.0, 8000), 8000)
    lines.append("odd: xyzzyx")
    texts = source / TEXTS.relative_to("/")
    texts.parent.mkdir(parents=True)
    texts.write_bytes(gzip.compress("\n".join(lines).encode()))

    told: list[str] = []
    with writing(tmp_path / "asterisk.h5", "asterisk") as writer:
        asterisk.prepare("asterisk", source, writer, told.append)
    assert "12 aligned; left out: 1 with unknown words, 1 without sound, 1 without words" in told
    store = open_speech("asterisk", str(tmp_path))
    assert [len(utterance_ids(store, s)) for s in ("train", "validation", "test")] == [10, 1, 1]
    labels = read(store["train/labels"])
    assert labels.max() == store.attributes["num_states"] - 1
    counts = np.bincount(labels)
    num_free = int(told[-2].split(", ")[1].split()[0])
    assert (counts[num_free:] >= asterisk.MIN_SENONE_FRAMES).all()
    with pytest.raises(InputError, match="install the Debian packages asterisk-core-sounds-en and"):
        asterisk.prepare("asterisk", tmp_path, writer, told.append)
