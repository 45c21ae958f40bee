"""The command line: which command was asked for, with what. Imports nothing heavy itself."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from esgd_hpc.errors import EsgdError, InputError, print_error
from esgd_hpc.launch import launched_rank

DESCRIPTION = "Train a population of networks with Evolutionary Stochastic Gradient Descent."

SERIAL_COMMANDS = ("data", "inspect", "verify", "export", "report", "recipes", "jobs")
"""Those that MPI has no part in, also in a job script where the launcher's variables are set."""

SECONDS_TO_SPEAK = 2.0

EXIT_STATUS = """\
exit status:
  0   done
  1   the run failed, verify found damage, check something that cannot work, or export
      --check-fitness another fitness
  2   bad input
  99  stopped early at a complete checkpoint; start the same command again to go on
"""


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

    check = commands.add_parser(
        "check",
        help="look whether a job can run here; start it as the job itself, by mpirun or srun",
    )
    check.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs="?",
        help="a recipe's name or a TOML file: check what it needs as well",
    )
    check.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="replace a key of the recipe, as for run",
    )
    check.add_argument(
        "--output",
        metavar="DIR",
        help="folder of the run's files (default: runs/RECIPE, or the current folder); nothing"
        " stays in it",
    )
    check.add_argument("--json", action="store_true", help="one JSON object, fit for programs")

    _add_jobs(commands.add_parser("jobs", help="job scripts for Slurm and LSF"))
    commands.add_parser("recipes", help="list the recipes that come with esgd")
    return top


def _add_jobs(jobs: argparse.ArgumentParser) -> None:
    actions = jobs.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions.add_parser("list", help="show the templates and the sites")
    actions.add_parser("path", help="print the folder of the templates")
    render = actions.add_parser("render", help="print a script filled in for a recipe")
    render.add_argument("--file", metavar="FILE", help="write the script there instead")
    submit = actions.add_parser("submit", help="the same, and hand it to sbatch or bsub")
    submit.add_argument("--links", metavar="N", type=int, help="jobs of a --template chain")
    for action in (render, submit):
        action.add_argument("recipe", metavar="RECIPE", help="a recipe's name or a TOML file")
        action.add_argument("--scheduler", choices=("slurm", "lsf"), required=True)
        action.add_argument(
            "--template", metavar="NAME", help="one of `esgd jobs list` (default: what fits)"
        )
        action.add_argument(
            "--site",
            metavar="NAME|FILE",
            default="generic",
            help="one of `esgd jobs list`, or a file",
        )
        action.add_argument("--nodes", metavar="N", type=int, default=1, help="default: 1")
        action.add_argument(
            "--gpus-per-node", metavar="N", type=int, help="0: none (default: the site's)"
        )
        action.add_argument(
            "--ranks-per-node", metavar="N", type=int, help="default: one for each GPU"
        )
        action.add_argument(
            "--ranks-per-group",
            metavar="N",
            type=int,
            help="ranks that train one individual together (default: the recipe's)",
        )
        action.add_argument(
            "--cores-per-rank",
            metavar="N",
            type=int,
            help="default: the site's, or topology.threads_per_rank and one more",
        )
        action.add_argument(
            "--memory-per-node",
            metavar="GIB",
            type=int,
            help="check that it is enough (loads torch); for Slurm also ask for it",
        )
        action.add_argument("--time", metavar="HH:MM:SS", required=True, help="limit of one job")
        action.add_argument("--account", metavar="NAME", help="who pays: sbatch -A, bsub -P")
        action.add_argument(
            "--partition",
            "--queue",
            metavar="NAME",
            help="sbatch -p, bsub -q (default: the site's)",
        )
        action.add_argument("--name", metavar="NAME", help="the job's (default: esgd-RUN)")
        action.add_argument(
            "--seeds", metavar="1-8", help="a job for each of these seeds; 1-8%%4: four at a time"
        )
        action.add_argument(
            "--set",
            dest="overrides",
            metavar="KEY=VALUE",
            action="append",
            default=[],
            help="replace a key of the recipe, as for run",
        )
        action.add_argument(
            "--output", metavar="DIR", help="folder of the run's files (default: runs/RECIPE)"
        )
        action.add_argument(
            "--environment",
            metavar="FILE",
            help='what the script sources to find esgd (default: what this esgd lies in); "": none',
        )
        action.add_argument(
            "--mpi",
            metavar="NAME",
            help="what starts ranks: Slurm: a type of srun --mpi, or mpirun; LSF: jsrun, mpirun"
            " (default: the site's)",
        )


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


def _leave_together(serial: bool) -> None:
    """Let rank 0 have its say: launchers end the others when the first one leaves with an error."""
    if launched_rank() is None:
        return
    if not serial:
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError):
            return  # without MPI there is nobody to wait for
        if MPI.COMM_WORLD.size > 1:
            MPI.COMM_WORLD.Barrier()
            return
    # Started on several ranks by mistake, or ranks that do not see each other.
    time.sleep(SECONDS_TO_SPEAK if launched_rank() else 0.0)
