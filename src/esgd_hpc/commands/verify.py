"""`esgd verify`: whether every byte of a run's checkpoints is as it was written."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from esgd_hpc.errors import InputError


def execute(arguments: argparse.Namespace) -> int:
    """Print what is right and wrong, and return 0, or 1 where there is damage.

    Raises InputError where there is no checkpoint to look at.
    """
    run = Path(arguments.run)
    report = _report(run)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0 if report["ok"] else 1


def _report(run: Path) -> dict[str, Any]:
    """Return {run, ok, generations [{folder, ok, problems}], problems, notes}."""
    from esgd_hpc.checkpoint import files
    from esgd_hpc.checkpoint.history_file import read_history_file
    from esgd_hpc.checkpoint.verify import verify_checkpoint

    if not os.path.isdir(run):
        raise InputError(f"{run}: no such folder")
    single = files.is_generation_folder(run)
    folders = [run] if single else [generation.path for generation in files.generations(run)]
    if not folders:
        raise InputError(f"{run}: no checkpoint in this folder")
    generations = []
    for folder in folders:
        problems = verify_checkpoint(folder)
        generations.append({"folder": folder.name, "ok": not problems, "problems": problems})
    problems, notes = [], []
    if not single:
        if (run / files.HISTORY).exists():
            try:
                read_history_file(run / files.HISTORY)
            except InputError as error:
                problems.append(str(error))
        latest = run / files.LATEST
        if latest.is_symlink() and not latest.exists():
            notes.append(f"{files.LATEST} names a generation that is gone; nothing depends on it")
        notes += [
            f"{path.name} was not finished; the next checkpoint deletes it"
            for path in files.temporary_generations(run)
        ]
    ok = not problems and all(generation["ok"] for generation in generations)
    return {
        "run": str(run),
        "ok": ok,
        "generations": generations,
        "problems": problems,
        "notes": notes,
    }


def _print(report: dict[str, Any]) -> None:
    from esgd_hpc.commands.inspect import printable

    for generation in report["generations"]:
        print(f"{generation['folder']}  {'ok' if generation['ok'] else 'DAMAGED'}")
        for problem in generation["problems"]:
            print(f"    {printable(problem)}")
    for problem in report["problems"]:
        print(printable(problem))
    for note in report["notes"]:
        print(f"note: {printable(note)}")
