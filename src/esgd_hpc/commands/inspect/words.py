"""How records become words for people and plain data for programs."""

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import msgspec

from esgd_hpc.population import Draw

SHOWN = 20
"""Rows of a table; --json has all."""


class Answer(NamedTuple):
    """An answer for programs and for people."""

    described: dict[str, Any]
    """The object of --json; numbers may still be other than finite."""
    lines: list[str]
    """May still have in them what would control a terminal."""


def printable(text: str) -> str:
    """Return a text from a file without what would control a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def finite(value: Any) -> Any:
    """Return nested data with None for the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def number(value: float, form: str = ".6g") -> str:
    """Return a number in words; one that is not known is NaN."""
    return "-" if math.isnan(value) else f"{value:{form}}"


def uids(values: Sequence[int]) -> str:
    """Return some uids in words, the first ones of many."""
    shown = " ".join(map(str, values[:SHOWN])) or "-"
    return shown + (f" and {len(values) - SHOWN} more" if values[SHOWN:] else "")


def optimizer_object(draw: Draw | None) -> dict[str, Any] | None:
    """Return {name, learning_rate, momentum, nesterov, weight_decay, batch_size, hyperparameters}.

    None before the first SGD step.
    """
    if draw is None:
        return None
    fields = msgspec.to_builtins(draw)
    return {"name": fields.pop("optimizer"), **fields}


def optimizer_text(draw: Draw | None) -> str:
    """Return an optimizer with its hyper-parameters in words."""
    if draw is None:
        return "nothing yet"
    parts = [f"{draw.optimizer}, learning rate {draw.learning_rate:.4g}"]
    if draw.momentum:
        parts.append(f"{'Nesterov ' if draw.nesterov else ''}momentum {draw.momentum:.4g}")
    if draw.weight_decay:
        parts.append(f"weight decay {draw.weight_decay:.4g}")
    parts.append(f"batch size {draw.batch_size}")
    parts += [f"{name} {value}" for name, value in sorted(draw.hyperparameters.items())]
    return ", ".join(parts)


def table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], words: Collection[int] = ()
) -> list[str]:
    """Return aligned lines; the columns at the places `words` are aligned at their left."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place in words else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (titles, *rows)
    ]
