"""`esgd export`: one individual, or the average of the elite, for programs other than esgd.

As a weights file, or as what it says of each frame of speech.
"""

import argparse
import json
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from esgd_hpc.errors import InputError

if TYPE_CHECKING:
    from esgd_hpc.checkpoint.reader import Checkpoint
    from esgd_hpc.config import Recipe
    from esgd_hpc.population import Individual, Weights
    from esgd_hpc.rescore import Rescorer

SHOWN = 20
"""uids in a line."""


class Chosen(NamedTuple):
    """Whose weights are asked for."""

    what: str
    uids: list[int]
    individual: "Individual | None"
    """None for the average of several."""


def execute(arguments: argparse.Namespace) -> int:
    """Write what is asked for and say what is in it; score the weights file again where asked to.

    Returns 1 where the weights do not have the recorded fitness here (the file is written all the
    same), else 0. Raises InputError for an individual that is not there, a name that ends in
    another way, and a task that is needed but cannot be loaded; nothing is written then.
    """
    from esgd_hpc.checkpoint.export import ENDINGS, state_dict_arrays, write_state_dict
    from esgd_hpc.checkpoint.reader import find_generation, open_checkpoint, weights_digest

    output = Path(arguments.output) if arguments.output else None
    if output is None and (arguments.check_fitness or not arguments.log_likelihoods):
        raise InputError(
            "--output FILE is missing: FILE.safetensors or FILE.pt; or --log-likelihoods DIR"
        )
    if output is not None and output.suffix not in ENDINGS:
        raise InputError(f"--output {output}: the name must end in {' or '.join(ENDINGS)}")
    checkpoint = open_checkpoint(find_generation(Path(arguments.run), arguments.generation))
    chosen = _choose(checkpoint, arguments.individual)
    recalibrates = chosen.individual is None and _children_are_recalibrated(checkpoint)
    rescorer = None
    if recalibrates or arguments.check_fitness:
        rescorer = _rescorer(checkpoint, recalibrates)
    vector = _weights(checkpoint, chosen)
    if rescorer and recalibrates:
        vector = rescorer.recalibrated(vector)
    if arguments.log_likelihoods:
        _write_log_likelihoods(arguments, checkpoint, chosen, vector)
    if output is None:
        return 0
    described = _described(checkpoint, chosen, weights_digest([vector]))
    write_state_dict(output, state_dict_arrays(checkpoint.layout, vector), described)
    print(f"{output}: {_told(checkpoint, chosen)}")
    return _check(rescorer, output, chosen) if rescorer and arguments.check_fitness else 0


def _write_log_likelihoods(
    arguments: argparse.Namespace, checkpoint: "Checkpoint", chosen: Chosen, vector: "Weights"
) -> None:
    from esgd_hpc.likelihoods import write_log_likelihoods  # imports torch

    folder = Path(arguments.log_likelihoods)
    script, what = write_log_likelihoods(checkpoint, vector, arguments.split, folder)
    print(f"{script}: log-likelihoods of {what}, by {_told(checkpoint, chosen)}")


# Whose weights ------------------------------------------------------------------------------------


def _choose(checkpoint: "Checkpoint", asked: str) -> Chosen:
    if asked == "best":
        best = checkpoint.best()
        return Chosen("best", [best.uid], best)
    if asked == "elite":
        return Chosen("average of the elite", _elite(checkpoint), None)
    present = [individual.uid for individual in checkpoint.individuals]
    if not asked.isdecimal() or int(asked) not in present:
        raise InputError(
            f"--individual {asked}: not in generation {checkpoint.generation}; `best` (which is"
            f" {checkpoint.best().uid}), `elite`, or one of {_listed(present)}"
        )
    place = present.index(int(asked))
    return Chosen("individual", [int(asked)], checkpoint.individuals[place])


def _elite(checkpoint: "Checkpoint") -> list[int]:
    """Return the uids of the m-elite in uid order, without individuals that failed."""
    ranked = sorted(checkpoint.individuals, key=lambda i: (i.fitness, i.uid))
    elite = ranked[: _recipe(checkpoint).num_elite]
    uids = sorted(i.uid for i in elite if i.fitness < float("inf"))
    if not uids:
        raise InputError(
            f"--individual elite: every individual of generation {checkpoint.generation} failed;"
            " `best` may be of an earlier one"
        )
    return uids


def _weights(checkpoint: "Checkpoint", chosen: Chosen) -> "Weights":
    """Return the flat vector, shape [P]."""
    from esgd_hpc.checkpoint.export import average_weights
    from esgd_hpc.population import fittest

    if chosen.individual is None:
        return average_weights(checkpoint, chosen.uids, fittest(checkpoint.individuals).uid)
    if chosen.what == "best":
        return checkpoint.best_weights()
    (uid,) = chosen.uids
    return checkpoint.read_weights([uid])[uid]


def _recipe(checkpoint: "Checkpoint") -> "Recipe":
    from esgd_hpc.recipe_file import recipe_from

    return recipe_from(checkpoint.recipe, source=f"the recipe in {checkpoint.path}")


# What is said of them -----------------------------------------------------------------------------


def _described(checkpoint: "Checkpoint", chosen: Chosen, digest: str) -> dict[str, str]:
    """Return the metadata of the file."""
    described = {
        "format": "pt",  # the word by which other readers of safetensors know torch's names
        "what": chosen.what,
        "uids": json.dumps(chosen.uids),
        "generation": str(checkpoint.generation),
        "task": str(checkpoint.recipe.get("task", "")),
        "method": str(checkpoint.recipe.get("method", "")),
        "esgd_version": _version(),
        "checkpoint_format": str(checkpoint.commit.format),
        "weights_sha256": digest,
    }
    if chosen.individual is not None:
        described["fitness"] = repr(chosen.individual.fitness)
        described["metrics"] = json.dumps(chosen.individual.metrics)
    return described


def _told(checkpoint: "Checkpoint", chosen: Chosen) -> str:
    generation, individual = checkpoint.generation, chosen.individual
    if individual is None:
        return f"{chosen.what} of generation {generation}: individuals {_listed(chosen.uids)}"
    lost = chosen.what == "best" and checkpoint.champion is not None
    return (
        f"individual {individual.uid} of generation {generation}"
        f"{', the best ever, which the population has lost' if lost else ''},"
        f" fitness {individual.fitness:.6g}"
    )


def _listed(uids: list[int]) -> str:
    return ", ".join(map(str, uids[:SHOWN])) + (" ..." if uids[SHOWN:] else "")


def _version() -> str:
    try:
        return metadata.version("esgd-hpc")
    except metadata.PackageNotFoundError:
        return "unknown"


# Scoring again ------------------------------------------------------------------------------------


def _children_are_recalibrated(checkpoint: "Checkpoint") -> bool:
    """Tell whether a child gets new BatchNorm statistics instead of the mean of its parents'."""
    layout = checkpoint.layout
    has_statistics = layout.num_parameters < layout.num_floats
    return has_statistics and _recipe(checkpoint).evolution.batchnorm == "recalibrate"


def _rescorer(checkpoint: "Checkpoint", recalibrates: bool) -> "Rescorer":
    from esgd_hpc.rescore import open_rescorer  # imports torch

    try:
        return open_rescorer(checkpoint)
    except InputError as error:
        if not recalibrates:
            raise
        raise InputError(
            'evolution.batchnorm = "recalibrate": the average of the elite needs the task and its'
            f" training data: {error}"
        ) from error


def _check(rescorer: "Rescorer", path: Path, chosen: Chosen) -> int:
    """Score what the file holds, say whether that is the recorded fitness, and return 0 or 1."""
    from esgd_hpc.checkpoint.export import read_back, vector_from

    vector = vector_from(rescorer.checkpoint.layout, read_back(path), str(path))
    score, failure = rescorer.score(vector)
    found = f"fitness {score.fitness!r}" + (f" ({failure})" if failure else "")
    if chosen.individual is None:
        best = rescorer.checkpoint.best()
        found += "".join(f", {name} {value:.4g}" for name, value in sorted(score.metrics.items()))
        print(f"{found}; the best, individual {best.uid}, has {best.fitness!r}")
        return 0
    recorded = chosen.individual.fitness
    if repr(score.fitness) == repr(recorded):
        print(f"{found}, recorded {recorded!r}: equal to the last bit")
        return 0
    print(f"{found}, recorded {recorded!r}: they differ by {score.fitness - recorded:.3g}")
    print("what may be the reason:")
    for reason in rescorer.likely_reasons():
        print(f"  {reason}")
    return 1
