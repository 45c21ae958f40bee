"""`esgd data`: what a run trains on, checked once and written as one file a data set."""

import argparse
import difflib
from pathlib import Path

from esgd_hpc.errors import InputError


def execute(arguments: argparse.Namespace) -> int:
    """List the data sets, or prepare one; return 0."""
    return _list(arguments) if arguments.action == "list" else _prepare(arguments)


def _list(arguments: argparse.Namespace) -> int:
    from esgd_hpc.data.prepare import DATA_SETS
    from esgd_hpc.data.store import data_file, open_store

    for entry in DATA_SETS.values():
        file = data_file(entry.name, arguments.output or "")
        try:
            is_there = not open_store(entry.name, str(file)).is_missing
            state = f"{file} ({file.stat().st_size / 2**20:,.1f} MiB)" if is_there else "no"
        except InputError as error:
            state = str(error)
        print(f"{entry.name}: {entry.what}\n  from      {entry.source}\n  prepared  {state}")
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
    from esgd_hpc.data.prepare import DATA_SETS, prepare
    from esgd_hpc.data.store import data_file

    name = arguments.name
    if name not in DATA_SETS:
        near = difflib.get_close_matches(name, DATA_SETS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"data set {name}: {hint}known are {', '.join(DATA_SETS)}; `esgd data list` says more"
        )
    source = Path(arguments.source) if arguments.source else None
    if source is not None and not source.exists():
        raise InputError(f"--source {source}: no such file or folder")
    file = data_file(name, arguments.output or "")
    prepare(name, source, file, lambda line: print(line, flush=True))
    print(f"{file}: {file.stat().st_size / 2**20:,.1f} MiB")
    return 0
