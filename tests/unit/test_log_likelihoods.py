"""`esgd export --log-likelihoods` writes what a Kaldi decoder takes, for each frame once."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch
from mpi4py import MPI

from esgd_hpc.api import run as train
from esgd_hpc.checkpoint.reader import find_generation, open_checkpoint
from esgd_hpc.cli import main
from esgd_hpc.errors import InputError
from esgd_hpc.likelihoods import write_log_likelihoods
from esgd_hpc.recipe_file import recipe_from
from esgd_hpc.tasks import load_task
from unit.test_speech import OPTIONS, STATES, Array, segment_logits, write_speech

kaldiio = pytest.importorskip("kaldiio", reason="kaldiio is not installed")
pytest.importorskip("kaldi_native_io", reason="kaldi-native-io is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of prepared files and runs on them, each by the name of its task."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def written(folder: Path) -> dict[str, dict[str, list[Array]]]:
    found = {}
    for name, options in OPTIONS.items():
        found[name] = write_speech(folder, name, ivectors=name == "swb300")
        recipe = {
            "task": name,
            "generations": 1,
            "task_options": {"path": str(folder), **options},
            "population": {"parents": 3, "offspring": 2},
            "sgd": {"batch_size": 16, "optimizers": [{"name": "adam", "learning_rate": 0.01}]},
        }
        train(recipe_from(recipe), MPI.COMM_SELF, output=str(folder / name))
    return found


@pytest.mark.parametrize("individual", ["best", "elite"])
@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("name", OPTIONS)
def test_another_reader_finds_posteriors_without_priors(
    folder: Path,
    written: dict[str, dict[str, list[Array]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    split: str,
    individual: str,
) -> None:
    command = ["export", str(folder / name), "--individual", individual, "--split", split]
    weights = tmp_path / "w.safetensors"
    command += ["--output", str(weights), "--log-likelihoods", str(tmp_path)]
    assert main(command) == 0
    assert f"{split}.scp: log-likelihoods of " in capsys.readouterr().out
    # The same from the exported weights and the original frames.
    model = load_task(name, {"path": str(folder), **OPTIONS[name]}).model().eval()
    model.load_state_dict(safetensors.torch.load_file(weights))
    counts = np.bincount(np.concatenate(written[name]["train labels"]), minlength=STATES)
    found = kaldiio.load_scp(str(tmp_path / f"{split}.scp"))
    originals = written[name][split]
    assert list(found) == [f"{split}{number}" for number in range(len(originals))]
    for matrix, frames in zip(found.values(), originals, strict=True):
        with torch.no_grad():
            if name == "bn50":
                padded = np.concatenate([frames[:1], frames, frames[-1:]])
                windows = np.concatenate([padded[:-2], padded[1:-1], padded[2:]], axis=1)
                logits = model(torch.from_numpy(windows))
            else:
                logits = torch.cat([*segment_logits(model, torch.from_numpy(frames).float(), 7)])
        expected = logits.log_softmax(dim=1).numpy() - np.log(counts / counts.sum())
        np.testing.assert_allclose(matrix, expected, rtol=1e-4, atol=1e-5)
        assert matrix.dtype == np.float32


def refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(command) == 2
    err = capsys.readouterr().err
    assert err.startswith("esgd: error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.usefixtures("written")
def test_what_cannot_be_exported(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(folder / "bn50")
    assert "--output FILE is missing" in refused(["export", run], capsys)
    command = ["export", run, "--log-likelihoods", str(tmp_path / "new")]
    prepared = folder / "bn50.h5"
    prepared.rename(tmp_path / "bn50.h5")
    try:
        assert "bn50.h5: no such file; prepare the data" in refused(command, capsys)
        write_speech(folder, "bn50", ivectors=False, states=STATES + 1)
        assert "its model differs from the one in" in refused(command, capsys)
        write_speech(folder, "bn50", ivectors=False, splits=("train", "validation"))
        assert "--split test: " in refused(command, capsys)
    finally:
        shutil.move(tmp_path / "bn50.h5", prepared)
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("written")
def test_a_task_without_speech(folder: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(find_generation(folder / "bn50", None))
    other = msgspec.structs.replace(
        checkpoint, recipe={"task": "kjv", "sgd": checkpoint.recipe["sgd"]}
    )
    with pytest.raises(InputError, match='task = "kjv" has no frames of speech'):
        write_log_likelihoods(other, checkpoint.best_weights(), "test", tmp_path / "new")
    assert not (tmp_path / "new").exists()
