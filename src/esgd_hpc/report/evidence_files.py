"""The files with the paper's tables and figures that lie beside the page."""

import csv
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from esgd_hpc.report import evidence_images, evidence_tables
from esgd_hpc.report.evidence import TaskRuns
from esgd_hpc.report.evidence_charts import figure_1, figure_2
from esgd_hpc.report.evidence_tables import Record
from esgd_hpc.report.tables import Table

_NUMBERS = re.compile(r"[-+0-9.e, %\[\]]*")
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~$&])")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._]+")
_MOST_LETTERS = 60


def table_files(tasks: Sequence[TaskRuns]) -> dict[str, bytes]:
    """Return the content of each table by its path in the folder of the report."""
    parts_1, parts_6 = [], []
    for task in tasks:
        notes = evidence_tables.notes_1(task)
        parts_1.append(_markdown_part(task.task, [evidence_tables.table_1(task)], notes))
        tables, notes = evidence_tables.tables_6(task), evidence_tables.notes_6(task)
        parts_6.append(_markdown_part(task.task, tables, notes))
    records_1 = [record for task in tasks for record in evidence_tables.records_1(task)]
    records_6 = [record for task in tasks for record in evidence_tables.records_6(task)]
    title_1 = "Table 1: single baseline, population baseline and ESGD"
    title_6 = "Table 6: optimizers of the best individual by generation"
    return {
        "tables/table1.md": _encoded("\n".join([f"# {title_1}\n", *parts_1])),
        "tables/table1.csv": _csv(evidence_tables.COLUMNS_1, records_1),
        "tables/table6.md": _encoded("\n".join([f"# {title_6}\n", *parts_6])),
        "tables/table6.csv": _csv(evidence_tables.COLUMNS_6, records_6),
    }


def figure_files(tasks: Sequence[TaskRuns]) -> dict[str, bytes]:
    """Return the content of each image by its path in the folder of the report.

    Raises ModuleNotFoundError without matplotlib.
    """
    found = {}
    for task, name in zip(tasks, file_names([task.task for task in tasks]), strict=True):
        for figure, chart in (("figure1", figure_1(task)), ("figure2", figure_2(task))):
            if chart is not None:
                for ending in evidence_images.ENDINGS:
                    path = f"figures/{figure}-{name}.{ending}"
                    found[path] = evidence_images.image(chart, ending)
    return found


def file_names(tasks: Iterable[str]) -> list[str]:
    """Return a part of a file name for each task: plain letters, and no two the same."""
    names: list[str] = []
    for task in tasks:
        plain = _NOT_IN_NAMES.sub("-", task).strip("-.")[:_MOST_LETTERS] or "task"
        name, count = plain, 1
        while name.lower() in map(str.lower, names):  # some disks do not tell case
            count += 1
            name = f"{plain}-{count}"
        names.append(name)
    return names


# Markdown -----------------------------------------------------------------------------------------


def _markdown_part(title: str, tables: Iterable[Table], notes: Iterable[str]) -> str:
    """Return a section with tables and the notes on them; all texts stay texts."""
    lines = [f"## {_escaped(title)}", ""]
    for table in tables:
        lines += [f"{_escaped(table.title)}", "", *_markdown_rows(table), ""]
    lines += [_escaped(" ".join(notes)), ""]
    return "\n".join(lines)


def _markdown_rows(table: Table) -> list[str]:
    bars = [":--" if column in table.words else "--:" for column in table.columns]
    rows = [list(map(_escaped, row)) for row in (table.columns, *table.rows)]
    return [f"| {' | '.join(row)} |" for row in (rows[0], bars, *rows[1:])]


def _escaped(text: str) -> str:
    line = " ".join(text.split())
    return line if _NUMBERS.fullmatch(line) else _MARKUP.sub(r"\\\1", line)


# CSV ----------------------------------------------------------------------------------------------


def _csv(columns: Sequence[str], records: Iterable[Record]) -> bytes:
    """Return a CSV file in UTF-8: numbers in full precision, empty where they are NaN."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(columns)
    for record in records:
        writer.writerow([_cell(record[column]) for column in columns])
    return _encoded(content.getvalue())


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if isinstance(value, float) and math.isnan(value) else value


def _encoded(text: str) -> bytes:
    # The name of a folder may hold bytes that are no text.
    return text.encode("utf-8", errors="backslashreplace")
