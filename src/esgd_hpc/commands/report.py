"""`esgd report`: what a person looks at after a run, or to compare several."""

import argparse
import os
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from esgd_hpc.errors import InputError

if TYPE_CHECKING:
    from esgd_hpc.checkpoint.reader import Checkpoint

PAGE = "report.html"
SEVERAL = "report"
"""Default folder of the report on several runs."""
PACKAGES = ("jinja2", "matplotlib", "plotly")
"""What a report is made with, beside what every run needs."""


def execute(arguments: argparse.Namespace) -> int:
    """Write the page, tables and figures, say where they are, and return 0.

    Raises InputError for a run that cannot be read and where a package is not installed, RunError
    where the disk refuses.
    """
    _require_packages()
    from esgd_hpc.checkpoint.reader import open_checkpoint
    from esgd_hpc.report.evidence import by_task
    from esgd_hpc.report.evidence_files import figure_files, table_files
    from esgd_hpc.report.page import render_page

    checkpoints = [open_checkpoint(Path(run)) for run in arguments.runs]
    folder = _folder(arguments.output, checkpoints)
    runs = dict(zip(_names(arguments.runs, checkpoints), checkpoints, strict=True))
    tasks = by_task(runs)
    contents = {PAGE: render_page(runs), **table_files(tasks), **figure_files(tasks)}
    for name, content in contents.items():
        path = folder / name
        _make(path.parent, f"{path.parent}: is a file; move it away, or name another --output")
        _write(path, content)
    print(f"{folder / PAGE}: open it in a browser")
    parts = sorted({(folder / name).parent for name in contents} - {folder})
    print(f"Tables and figures as files: {', '.join(map(str, parts))}")
    return 0


def _require_packages() -> None:
    for package in PACKAGES:
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            raise InputError(
                f"the report needs {error.name}, which is not installed;"
                ' pip install "esgd-hpc[report]"'
            ) from None


def _names(runs: Sequence[str], checkpoints: Sequence["Checkpoint"]) -> list[str]:
    """Return the name of each run's folder, or the whole path where they would be the same."""
    from esgd_hpc.checkpoint.files import is_generation_folder

    names = []
    for run, checkpoint in zip(runs, checkpoints, strict=True):
        named = is_generation_folder(Path(run).absolute())
        folder = checkpoint.path.resolve().parent
        names.append(f"{folder.name}, generation {checkpoint.generation}" if named else folder.name)
    return names if len(set(names)) == len(names) else list(runs)


def _folder(output: str | None, checkpoints: Sequence["Checkpoint"]) -> Path:
    """Return the folder of the report, made where it is missing.

    Its path is absolute, so that it can be pasted into a browser.
    """
    if output is None and len(checkpoints) == 1:
        return Path(os.path.abspath(checkpoints[0].path)).parent  # of the link `latest` itself
    folder = Path(os.path.abspath(SEVERAL if output is None else output))
    _make(folder, f"--output {folder}: is a file; name a folder")
    return folder


def _make(folder: Path, wrong: str) -> None:
    """Make a folder where it is missing; `wrong` is said where it, or one above, is a file."""
    from esgd_hpc.checkpoint.files import cannot_write

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(wrong) from None
    except OSError as error:
        raise cannot_write(folder, error) from None


def _write(path: Path, content: bytes) -> None:
    """Write a file in one step."""
    from esgd_hpc.checkpoint import files

    # Started on several ranks by mistake, each writes its own.
    new = path.with_name(f"{path.name}.{os.getpid()}{files.TEMPORARY_SUFFIX}")
    try:
        files.write_file(new, content)
        new.replace(path)
    except OSError as error:
        raise files.cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)
