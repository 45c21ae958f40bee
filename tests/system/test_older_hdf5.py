"""An HDF5 of some years ago reads all that a run writes, and reads the same."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conftest import Launch

OLDER = os.environ.get("ESGD_OLDER_HDF5", "")

READ = """
import hashlib, json, sys
import h5py

found = {}

def attribute(owner, name):
    kind = owner.attrs.get_id(name).dtype
    if kind.kind in "iufS" or h5py.check_string_dtype(kind):
        return str(owner.attrs[name])
    return "references"  # between columns and their dimension scales, which are followed below

def look(file, name):
    thing = file[name]
    told = {key: attribute(thing, key) for key in sorted(thing.attrs)}
    if isinstance(thing, h5py.Dataset):
        told["shape"], told["dtype"] = list(thing.shape), str(thing.dtype)
        told["sha256"] = hashlib.sha256(thing[...].tobytes()).hexdigest()
        told["scales"] = [[scale.name for scale in d.values()] for d in thing.dims]
        told["virtual"] = thing.is_virtual
    found[file.filename + ":" + name] = told

for path in sys.argv[1:]:
    with h5py.File(path, "r") as file:
        look(file, "/")
        names = []
        file.visit(names.append)
        for name in names:
            look(file, name)
print(json.dumps({"hdf5": h5py.version.hdf5_version, "found": found}))
"""


def read(paths: list[Path], environment: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Return the version of HDF5 in an environment, and all that it finds in the files."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", READ, *map(str, paths)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    return told["hdf5"], told["found"]


@pytest.mark.skipif(not OLDER, reason="ESGD_OLDER_HDF5 names no folder with an older h5py")
def test_an_older_hdf5_reads_the_same_from_all_files_of_a_run(
    launch: "Launch", tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = [
        *("task_options.hidden=4", "generations=2"),
        # The first generation stays the best, and its best individual the champion.
        *("sgd.backoff_probability=0.0", 'sgd.optimizers=[{name="sgd", learning_rate=50.0}]'),
    ]
    sets = [word for option in options for word in ("--set", option)]
    done = launch(2, "run", "digits", *sets, "--output", run)
    assert done.returncode == 0, done.stderr
    newest = run / "gen_000002"
    paths = [run / "history.h5", *sorted(newest.glob("*.h5"))]
    assert [path.name for path in paths] == [
        *("history.h5", "champion.h5", "leader_00000.h5", "leader_00001.h5", "population.h5")
    ]
    version, found = read(paths, {})
    older, found_by_older = read(paths, {"PYTHONPATH": OLDER, "PYTHONNOUSERSITE": "1"})
    assert older.startswith("1.14.")
    assert not version.startswith("1.14.")
    assert found_by_older == found
    weights = found[f"{newest / 'population.h5'}:weights"]
    assert weights["virtual"]
    assert weights["shape"][0] == 8
