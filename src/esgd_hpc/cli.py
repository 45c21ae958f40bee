"""The command line: which command was asked for, with what. Imports nothing heavy itself."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from esgd_hpc.errors import EsgdError, InputError, print_error

DESCRIPTION = "Train a population of networks with Evolutionary Stochastic Gradient Descent."

SERIAL_COMMANDS = ("data", "inspect", "verify", "export", "report", "recipes")
"""Those that MPI has no part in, also in a job script where the launcher's variables are set."""

SECONDS_TO_SPEAK = 2.0

EXIT_STATUS = """\
exit status:
  0   done
  1   the run failed, verify found damage, or export --check-fitness another fitness
  2   bad input
  99  stopped early at a complete checkpoint; start the same command again to go on
"""

RANK_VARIABLES = (
    "OMPI_COMM_WORLD_RANK",
    "PMIX_RANK",
    "PMI_RANK",
    "JSM_NAMESPACE_RANK",
    "SLURM_PROCID",
)
"""Where launchers say which rank this is; read only to print a message once, before MPI is up."""


class _Parser(argparse.ArgumentParser):
    """Raises InputError instead of printing usage from every rank."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = _Parser(
        prog="esgd",
        description=DESCRIPTION,
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    run = commands.add_parser("run", help="train a population, alone or under mpirun or srun")
    run.add_argument("recipe", metavar="RECIPE", help="a recipe's name or a TOML file")
    run.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="replace a key of the recipe, such as sgd.epochs=2; VALUE is TOML",
    )
    run.add_argument(
        "--output", metavar="DIR", help="folder of the run's files (default: runs/RECIPE)"
    )
    run.add_argument(
        "--resume",
        choices=("auto", "never", "require"),
        default="auto",
        help="go on from a checkpoint in DIR: where there is one, never, or fail without",
    )
    run.add_argument("--dry-run", action="store_true", help="show what would run, train nothing")
    run.add_argument(
        "--ranks",
        metavar="N",
        type=int,
        help="with --dry-run: show it for a job of N ranks, without starting them",
    )
    run.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="warning",
        help="what each rank logs to standard error, with its rank and group",
    )

    data = commands.add_parser("data", help="prepare what the recipes train on")
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="show the data sets, and which are prepared")
    preparing = actions.add_parser("prepare", help="check a data set's files and write one of ours")
    preparing.add_argument("name", metavar="NAME", help="a data set of `esgd data list`")
    preparing.add_argument(
        "--source", metavar="PATH", help="the original files (default: where packages put them)"
    )
    for action in (listing, preparing):
        action.add_argument(
            "--output",
            metavar="DIR",
            help="folder of prepared files (default: $ESGD_DATA, or data)",
        )

    inspect = commands.add_parser(
        "inspect", help="show a run's history and population, individuals, and their descent"
    )
    inspect.add_argument("run", metavar="RUN", help="folder of a run, or of one generation")
    inspect.add_argument("--generation", metavar="N", type=int, help="default: the newest")
    question = inspect.add_mutually_exclusive_group()
    question.add_argument(
        "--individual",
        metavar="best|UID",
        help="tell its story: birth, SGD steps, how long it lived, children",
    )
    question.add_argument(
        "--ancestry", metavar="best|UID", help="show from whom it descends, as a tree"
    )
    question.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="two individuals, such as best 12, or two generations, such as generation:4"
        " generation:5",
    )
    inspect.add_argument(
        "--depth",
        metavar="N",
        type=int,
        help="how many births --ancestry goes back (default: 4; all with --json; all that an image"
        " has room for)",
    )
    inspect.add_argument(
        "--output", metavar="FILE", help="FILE.png or FILE.svg: draw the --ancestry as well"
    )
    inspect.add_argument("--json", action="store_true", help="one JSON object, fit for programs")

    verify = commands.add_parser("verify", help="read every byte of a run's checkpoints")
    verify.add_argument("run", metavar="RUN", help="folder of a run, or of one generation")
    verify.add_argument("--json", action="store_true", help="one JSON object, fit for programs")

    export = commands.add_parser("export", help="write an individual as an ordinary weights file")
    export.add_argument("run", metavar="RUN", help="folder of a run, or of one generation")
    export.add_argument(
        "--individual",
        metavar="best|elite|UID",
        default="best",
        help="the fittest ever seen (default), the average of the m-elite, or one by its uid",
    )
    export.add_argument("--generation", metavar="N", type=int, help="default: the newest")
    export.add_argument("--output", metavar="FILE", help="FILE.safetensors or FILE.pt")
    export.add_argument(
        "--log-likelihoods",
        metavar="DIR",
        help="write SPLIT.ark and SPLIT.scp of Kaldi there: log posteriors less log priors of the"
        " states, for a decoder",
    )
    export.add_argument(
        "--split",
        choices=("test", "validation", "train"),
        default="test",
        help="whose utterances --log-likelihoods is of (default: test)",
    )
    export.add_argument(
        "--check-fitness",
        action="store_true",
        help="score the file's weights with the run's task: is it the recorded fitness?",
    )

    report = commands.add_parser(
        "report", help="write an HTML page, tables and figures on one or several runs"
    )
    report.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run")
    report.add_argument(
        "--output",
        metavar="DIR",
        help="folder of report.html, tables/ and figures/ (default: the run's, or report/ for"
        " several runs)",
    )

    commands.add_parser("recipes", help="list the recipes that come with esgd")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    try:
        arguments = parser().parse_args(argv)
        if arguments.version:
            from importlib import metadata

            print(f"esgd {metadata.version('esgd-hpc')}")
            return 0
        if arguments.command is None:
            raise InputError("a command is missing; see `esgd --help`")
        status: int = import_module(f"esgd_hpc.commands.{arguments.command}").execute(arguments)
        return status
    except EsgdError as error:
        print_error(error, launched_rank())
        words = sys.argv[1:] if argv is None else argv
        _leave_together(serial=bool(words) and words[0] in SERIAL_COMMANDS)
        return error.exit_status
    except BrokenPipeError:  # `esgd inspect RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def launched_rank() -> int | None:
    """Return this process's rank by its launcher's word; None if it was not launched."""
    for name in RANK_VARIABLES:
        value = os.environ.get(name, "")
        if value.isdecimal():
            return int(value)
    return None


def _leave_together(serial: bool) -> None:
    """Let rank 0 have its say: launchers end the others when the first one leaves with an error."""
    if launched_rank() is None:
        return
    if serial:  # started on several ranks by mistake
        time.sleep(SECONDS_TO_SPEAK if launched_rank() else 0.0)
        return
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError):
        return  # without MPI there is nobody to wait for
    MPI.COMM_WORLD.Barrier()
