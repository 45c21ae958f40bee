"""Where the job scripts lie, and which there are."""

import sys
from importlib import metadata
from pathlib import Path

from esgd_hpc.errors import InputError

SCHEDULERS = ("slurm", "lsf")
SHARED = "functions"
"""The name of the file that the scripts of one scheduler share."""


def jobs_folder() -> Path:
    """Return the folder with slurm/, lsf/ and sites/: of the source tree, or as installed."""
    candidates = [
        Path(__file__).parents[3] / "jobs"
    ]  # the source tree, or an editable installation
    try:
        files = metadata.files("esgd-hpc") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix().endswith("share/esgd-hpc/jobs/README.md"):
            candidates.append(Path(str(file.locate())).resolve().parent)
    candidates += [  # pip install --target leaves them beside the package
        place / "share" / "esgd-hpc" / "jobs"
        for place in (Path(__file__).parents[2], Path(sys.prefix))
    ]
    for folder in candidates:
        if (folder / "slurm" / f"{SHARED}.sh").is_file():
            return folder
    raise InputError(
        f"the job scripts are missing: not in {' nor '.join(map(str, candidates))};"
        " install esgd-hpc again, or from its source tree"
    )


def template_names(scheduler: str) -> list[str]:
    """Return the names of the scripts for one scheduler."""
    folder = jobs_folder() / scheduler
    return sorted(file.stem for file in folder.glob("*.sh") if file.stem != SHARED)


def site_names() -> list[str]:
    """Return the names of the sites."""
    return sorted(file.stem for file in (jobs_folder() / "sites").glob("*.sh"))


def purpose(file: Path) -> str:
    """Return what a script says of itself in its first line after the `#!`."""
    line = file.read_text("utf-8").splitlines()[1]
    return line.removeprefix("#").partition(":  ")[0].strip().removesuffix(":")
