"""How two generations differ: fitness, diversity, who left and came, how far who stayed moved."""

import math
import re
from pathlib import Path
from typing import Any

from esgd_hpc.commands.inspect import GENERATION
from esgd_hpc.commands.inspect.view import NOT_KEPT, View, open_view
from esgd_hpc.commands.inspect.words import SHOWN, Answer, number, table, uids
from esgd_hpc.distance import Distance, parameter_distance, tensor_distances
from esgd_hpc.errors import InputError

_NAME = re.compile(GENERATION + r"([0-9]{1,18})")

_NUMBERS = {
    "best": "best",
    "best_ever": "best ever",
    "elite_average": "elite average",
    "lower_quartile": "lower quartile",
    "median": "median",
    "upper_quartile": "upper quartile",
    "worst": "worst",
    "diversity": "diversity",
}
"""Columns of the history, and what people call them."""


def compare(run: Path, asked: list[str]) -> Answer:
    """Compare two generations, named generation:N, the earlier one first.

    generations         [{generation, weights_kept, best, best_uid, best_ever, elite_average,
                        lower_quartile, median, upper_quartile, worst, diversity,
                        elite_offspring_fraction, individuals_by_optimizer}] of both
    left, came          uids that only the earlier one has, and only the later one
    stayed              [{uid, fitness [earlier, later], absolute, relative}] of those in both: how
                        far the parameters moved, and in units of their earlier norm
    mean_distance       {absolute, relative} of those who stayed; null where there is nobody, or
                        where weights are no longer kept, as are absolute and relative above

    Raises InputError for a generation that is not known, and where weights are damaged.
    """
    numbers = sorted(_generation(text, asked) for text in asked)
    if numbers[0] == numbers[1]:
        raise InputError(f"--compare {' '.join(asked)}: the same generation; name two of them")
    before, after = (open_view(run, number) for number in numbers)
    if before.checkpoint.layout != after.checkpoint.layout:
        raise InputError(f"{run}: generations {numbers[0]} and {numbers[1]} are of two models")
    earlier, later = ({i.uid: i.fitness for i in view.individuals} for view in (before, after))
    stayed = [uid for uid in earlier if uid in later]
    moved = _distances(before, after, stayed) if before.kept and after.kept else {}
    described = {
        "generations": [_generation_object(view) for view in (before, after)],
        "left": [uid for uid in earlier if uid not in later],
        "came": [uid for uid in later if uid not in earlier],
        "stayed": [
            {
                "uid": uid,
                "fitness": [earlier[uid], later[uid]],
                "absolute": moved[uid].absolute if moved else None,
                "relative": moved[uid].relative if moved else None,
            }
            for uid in stayed
        ],
        "mean_distance": _mean(list(moved.values())) if moved else None,
    }
    return Answer(described, _lines(described))


def _generation(text: str, asked: list[str]) -> int:
    match = _NAME.fullmatch(text)
    if match is None:
        raise InputError(
            f"--compare {' '.join(asked)}: expected two individuals, such as best 12, or two"
            f" generations, such as {GENERATION}4 {GENERATION}5"
        )
    return int(match[1])


def _generation_object(view: View) -> dict[str, Any]:
    row = view.row
    return {
        "generation": view.generation,
        "weights_kept": view.kept,
        "best_uid": row.best_uid,
        **{name: getattr(row, name) for name in _NUMBERS},
        "elite_offspring_fraction": row.elite_offspring_fraction,
        "individuals_by_optimizer": dict(row.individuals_by_optimizer),
    }


def _distances(before: View, after: View, stayed: list[int]) -> dict[int, Distance]:
    """Return how far the parameters of each individual moved; holds a piece of two rows."""
    layout = before.checkpoint.layout
    return {
        uid: parameter_distance(
            tensor_distances(
                layout, before.checkpoint.row_pieces(uid), after.checkpoint.row_pieces(uid)
            )
        )
        for uid in stayed
    }


def _mean(distances: list[Distance]) -> dict[str, float]:
    return {
        "absolute": math.fsum(d.absolute for d in distances) / len(distances),
        "relative": math.fsum(d.relative for d in distances) / len(distances),
    }


# For people ---------------------------------------------------------------------------------------


def _lines(described: dict[str, Any]) -> list[str]:
    both = described["generations"]
    optimizers = dict.fromkeys(name for one in both for name in one["individuals_by_optimizer"])
    rows = [
        *((title, *(number(one[name]) for one in both)) for name, title in _NUMBERS.items()),
        ("best individual", *(str(one["best_uid"]) for one in both)),
        ("children in the elite", *(f"{one['elite_offspring_fraction']:.0%}" for one in both)),
        *(
            (
                f"trained by {name}" if name != "none" else "not trained yet",
                *(str(one["individuals_by_optimizer"].get(name, 0)) for one in both),
            )
            for name in optimizers
        ),
        ("weights", *("kept" if one["weights_kept"] else "no longer kept" for one in both)),
    ]
    numbers = [one["generation"] for one in both]
    titles = ("", *(f"generation {n}" for n in numbers))
    return [
        *table(titles, rows, words=(0,)),
        "",
        f"left    {_counted(described['left'])}",
        f"came    {_counted(described['came'])}",
        f"stayed  {_counted([one['uid'] for one in described['stayed']])}",
        *_stayed_lines(described, numbers),
    ]


def _counted(values: list[int]) -> str:
    return f"{len(values)}: {uids(values)}" if values else "nobody"


def _stayed_lines(described: dict[str, Any], numbers: list[int]) -> list[str]:
    stayed, mean = described["stayed"], described["mean_distance"]
    if not stayed:
        return []
    kept = mean is not None
    titles = (
        "uid",
        *(f"fitness in {n}" for n in numbers),
        *(("moved", "relative") if kept else ()),
    )
    rows = [
        (
            str(one["uid"]),
            *(number(value) for value in one["fitness"]),
            *((number(one["absolute"], ".4g"), number(one["relative"], ".4g")) if kept else ()),
        )
        for one in stayed[:SHOWN]
    ]
    more = [f"{len(stayed) - SHOWN} more: --json"] if stayed[SHOWN:] else []
    if not kept:
        note = f"how far they moved is not known: weights are {NOT_KEPT}"
    else:
        note = (
            f"mean distance that they moved: {number(mean['absolute'], '.4g')},"
            f" {number(mean['relative'], '.4g')} of their norm"
        )
    return ["", *table(titles, rows), *more, "", note]
