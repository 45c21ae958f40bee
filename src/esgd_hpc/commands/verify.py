"""`esgd verify`: whether every byte of a run's checkpoints is as it was written."""

import argparse
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esgd_hpc.errors import InputError

if TYPE_CHECKING:
    from esgd_hpc.checkpoint.isolated import Reader

Say = Callable[[str], None]


def execute(arguments: argparse.Namespace) -> int:
    """Print what is right and wrong, and return 0, or 1 where there is damage.

    A line comes as soon as its generation is read. Raises InputError where there is no checkpoint
    to look at.
    """
    report = _report(Path(arguments.run), _silent if arguments.json else _print)
    if arguments.json:
        print(json.dumps(report, indent=2))
    return 0 if report["ok"] else 1


def _report(run: Path, say: Say) -> dict[str, Any]:
    """Return {run, ok, generations [{folder, ok, problems, lost}], problems, notes}.

    `lost` has the uids of the individuals whose weights are damaged or missing.
    """
    from esgd_hpc.checkpoint import files
    from esgd_hpc.checkpoint.isolated import Reader
    from esgd_hpc.checkpoint.verify import examine_checkpoint

    if not os.path.isdir(run):
        raise InputError(f"{run}: no such folder")
    single = files.is_generation_folder(run)
    folders = [run] if single else [generation.path for generation in files.generations(run)]
    folders += [] if single else files.interrupted(run)
    if not folders:
        raise InputError(f"{run}: no checkpoint in this folder")
    generations: list[dict[str, Any]] = []
    problems: list[str] = []
    notes: list[str] = []
    with Reader() as reader:
        for folder in folders:
            found = examine_checkpoint(folder, reader)
            if found.problems and not os.path.lexists(folder):
                notes.append(f"{folder.name} was deleted by a running job while it was read")
                continue
            ok = not found.problems
            say(f"{folder.name}  {'ok' if ok else 'DAMAGED'}")
            for problem in found.problems:
                say(f"    {problem}")
            generations.append({"folder": folder.name, "ok": ok, **found._asdict()})
        if not single:
            problems = _history_problems(run / files.HISTORY, reader)
    if not single:
        latest = run / files.LATEST
        if latest.is_symlink() and not latest.exists():
            notes.append(f"{files.LATEST} names a generation that is gone; nothing depends on it")
        notes += [
            f"{path.name} was not finished; the next checkpoint deletes it"
            for path in files.temporary_generations(run)
        ]
    for line in (*problems, *(f"note: {note}" for note in notes)):
        say(line)
    ok = not problems and all(generation["ok"] for generation in generations)
    return {
        "run": str(run),
        "ok": ok,
        "generations": generations,
        "problems": problems,
        "notes": notes,
    }


def _history_problems(path: Path, reader: "Reader") -> list[str]:
    """Return what is wrong with history.h5, which no checkpoint depends on. It may be missing."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return [f"{path.name}: not a plain file"]
        reader.history(path)
    except FileNotFoundError:
        return []
    except InputError as error:
        return [str(error)]
    return []


def _print(line: str) -> None:
    from esgd_hpc.commands.inspect.words import printable

    print(printable(line), flush=True)


def _silent(line: str) -> None:
    """Say nothing."""
