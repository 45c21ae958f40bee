"""`esgd check`: whether a job can run here, with a remedy for what cannot."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from esgd_hpc.cli import SECONDS_TO_SPEAK
from esgd_hpc.errors import EsgdError, InputError
from esgd_hpc.launch import launched_rank

if TYPE_CHECKING:
    from mpi4py import MPI

    from esgd_hpc.preflight.rows import Row


def execute(arguments: argparse.Namespace) -> int:
    """Check and tell; return 0, or 1 where something failed, the same on every rank.

    Raises InputError on every rank for a recipe that cannot be read.
    """
    from esgd_hpc.parallel.world import end_all, keep_status, start_world

    world = start_world()
    try:
        status = _check(arguments, world)
    except EsgdError:
        raise
    except BaseException as error:
        end_all(world, error)
    keep_status()
    return status


def _check(arguments: argparse.Namespace, world: "MPI.Intracomm") -> int:
    from esgd_hpc.parallel.agreement import on_root
    from esgd_hpc.preflight import check
    from esgd_hpc.preflight.rows import is_well
    from esgd_hpc.recipe_file import load_recipe

    if arguments.overrides and not arguments.recipe:
        raise InputError(f"--set {arguments.overrides[0]}: needs a RECIPE to replace a key of")
    recipe = None
    folder = Path(arguments.output or ".")
    if arguments.recipe:
        recipe = on_root(
            world, "reading the recipe", lambda: load_recipe(arguments.recipe, arguments.overrides)
        )
        folder = Path(arguments.output or Path("runs") / Path(arguments.recipe).stem)
    rows = check(world, os.environ, folder, recipe)
    # Launchers end the others when one leaves with an error, so the first has its say before.
    if world.size == 1 and launched_rank():  # one of many worlds that should be one
        time.sleep(SECONDS_TO_SPEAK)
    elif world.rank == 0:
        _tell(rows, world.size, arguments.json)
    world.Barrier()
    return 0 if is_well(rows) else 1


def _tell(rows: "Sequence[Row]", num_ranks: int, as_json: bool) -> None:
    from esgd_hpc.commands.inspect.words import printable
    from esgd_hpc.preflight.rows import is_well, table, verdict

    if as_json:
        described = [row._asdict() for row in rows]
        print(json.dumps({"ok": is_well(rows), "ranks": num_ranks, "rows": described}, indent=2))
    else:
        for line in (*table(rows), verdict(rows)):
            print(printable(line))
    sys.stdout.flush()
