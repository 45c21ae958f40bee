"""What `esgd check` found, a row each, and the table of them."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from esgd_hpc.errors import EsgdError

WIDTH = 100
"""Columns of the table."""

Status = Literal["ok", "warning", "failed"]


class Row(NamedTuple):
    """One finding."""

    area: str
    name: str
    status: Status
    finding: str
    remedy: str = ""


def failed(area: str, name: str, error: EsgdError) -> Row:
    """Return the row of a check that raised: messages end in the remedy, after a semicolon."""
    problem, semicolon, remedy = str(error).partition("; ")
    return Row(area, name, "failed", problem, remedy if semicolon else "see above, or report it")


def is_well(rows: Iterable[Row]) -> bool:
    """Whether nothing failed."""
    return all(row.status != "failed" for row in rows)


def verdict(rows: Sequence[Row]) -> str:
    """Return all rows in one line."""
    counts = {status: sum(row.status == status for row in rows) for status in ("failed", "warning")}
    told = [f"{n} {status}{'s' * (status == 'warning' and n > 1)}" for status, n in counts.items()]
    return ", ".join(text for text, n in zip(told, counts.values(), strict=True) if n) or "all well"


def table(rows: Sequence[Row]) -> list[str]:
    """Return the rows as lines of at most `WIDTH` columns, remedies below their findings."""
    lines = []
    areas = max(len(row.area) for row in rows)
    names = max(len(row.name) for row in rows)
    for row in rows:
        status = row.status if row.status != "failed" else "FAILED"
        begin = f"{status:7}  {row.area:{areas}}  {row.name:{names}}  "
        room = WIDTH - len(begin)
        # Paths and messages of libraries may be longer than a line: they are broken anywhere.
        told = textwrap.wrap(row.finding, room, break_on_hyphens=False)
        if row.remedy:
            told += textwrap.wrap(
                f"-> {row.remedy}", room, subsequent_indent="   ", break_on_hyphens=False
            )
        lines += [
            (begin if number == 0 else " " * len(begin)) + text for number, text in enumerate(told)
        ]
    return [line.rstrip() for line in lines]


def ranks_text(ranks: Sequence[int]) -> str:
    """Return ascending numbers of ranks in words, such as 0-3, 6."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and spans[-1][-1] == rank - 1:
            spans[-1][1:] = [rank]
        else:
            spans.append([rank])
    shown = [f"{span[0]}-{span[-1]}" if len(span) > 1 else f"{span[0]}" for span in spans[:6]]
    return ", ".join(shown) + (", ..." if len(spans) > 6 else "")
