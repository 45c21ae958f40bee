"""`esgd inspect`: which question about a run is asked, and its answer on standard output."""

import argparse
import json
from pathlib import Path

from esgd_hpc.errors import InputError

GENERATION = "generation:"
"""What --compare knows the number of a generation by."""


def execute(arguments: argparse.Namespace) -> int:
    """Print the answer, and return 0. Raises InputError where there is none.

    The other modules here answer, and say what their JSON objects have.
    """
    _refuse_contradictions(arguments)
    from esgd_hpc.commands.inspect import (
        ancestry,
        generation,
        story,
        two_generations,
        two_individuals,
    )
    from esgd_hpc.commands.inspect.view import open_view
    from esgd_hpc.commands.inspect.words import finite, printable

    run = Path(arguments.run)
    if _generations(arguments):
        answer = two_generations.compare(run, arguments.compare)
    else:
        view = open_view(run, arguments.generation)
        if arguments.individual is not None:
            answer = story.of_individual(view, arguments.individual)
        elif arguments.ancestry is not None:
            output = Path(arguments.output) if arguments.output is not None else None
            answer = ancestry.of_individual(
                view, arguments.ancestry, arguments.depth, output, everything=arguments.json
            )
        elif arguments.compare is not None:
            answer = two_individuals.compare(view, arguments.compare)
        else:
            answer = generation.of_view(view)
    if arguments.json:
        print(json.dumps(finite(answer.described), allow_nan=False))
    else:
        print("\n".join(map(printable, answer.lines)))
    return 0


def _refuse_contradictions(arguments: argparse.Namespace) -> None:
    """Refuse options that have no part in the question; the parser lets one question through."""
    for option in ("depth", "output"):
        if getattr(arguments, option) is not None and arguments.ancestry is None:
            raise InputError(
                f"--{option} {getattr(arguments, option)}: only with --ancestry UID; leave it out"
            )
    if arguments.depth is not None and arguments.depth < 1:
        raise InputError(f"--depth {arguments.depth}: must be at least 1, which shows the parents")
    if _generations(arguments) and arguments.generation is not None:
        raise InputError(
            f"--generation {arguments.generation}: --compare {' '.join(arguments.compare)} already"
            " names generations; leave one of them out"
        )


def _generations(arguments: argparse.Namespace) -> bool:
    """Tell whether generations are to be compared; `two_generations` refuses a mixture."""
    return any(text.startswith(GENERATION) for text in arguments.compare or ())
