"""`esgd export`: one individual as a weights file that loads without esgd."""

import argparse
from importlib import metadata
from pathlib import Path

from esgd_hpc.errors import InputError


def execute(arguments: argparse.Namespace) -> int:
    """Write the file, say what is in it, and return 0.

    Raises InputError for an individual that is not there or a name that ends in another way.
    """
    from esgd_hpc.checkpoint.export import ENDINGS, state_dict_arrays, write_state_dict
    from esgd_hpc.checkpoint.reader import find_generation, open_checkpoint, weights_digest

    output = Path(arguments.output)
    if output.suffix not in ENDINGS:
        raise InputError(f"--output {output}: the name must end in {' or '.join(ENDINGS)}")
    checkpoint = open_checkpoint(find_generation(Path(arguments.run), arguments.generation))
    if arguments.individual == "best":
        individual, vector = checkpoint.best(), checkpoint.best_weights()
    else:
        uid = _uid(arguments.individual, list(checkpoint.owner))
        individual = next(i for i in checkpoint.individuals if i.uid == uid)
        vector = checkpoint.read_weights([uid])[uid]
    described = {
        "uid": str(individual.uid),
        "fitness": repr(individual.fitness),
        "generation": str(checkpoint.generation),
        "task": str(checkpoint.recipe.get("task", "")),
        "method": str(checkpoint.recipe.get("method", "")),
        "esgd_version": _version(),
        "weights_sha256": weights_digest([vector]),
    }
    write_state_dict(output, state_dict_arrays(checkpoint.layout, vector), described)
    print(
        f"{output}: individual {individual.uid} of generation {checkpoint.generation},"
        f" fitness {individual.fitness:.6g}"
    )
    return 0


def _uid(asked: str, present: list[int]) -> int:
    if not asked.isdecimal() or int(asked) not in present:
        raise InputError(
            f"--individual {asked}: not in this generation; `best`, or one of"
            f" {', '.join(map(str, present[:20]))}{' ...' if present[20:] else ''}"
        )
    return int(asked)


def _version() -> str:
    try:
        return metadata.version("esgd-hpc")
    except metadata.PackageNotFoundError:
        return "unknown"
