"""How the words, tables and numbers of runs become one HTML file that needs nothing else.

What comes from files reaches the page as escaped text or as JSON, and the page's policy lets a
browser run our two scripts only, by their hashes, and load nothing.
"""

import base64
import hashlib
from collections.abc import Mapping
from importlib import metadata, resources
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from esgd_hpc.checkpoint.reader import Checkpoint
from esgd_hpc.history import GenerationRow
from esgd_hpc.report import evidence_tables, facts, tables
from esgd_hpc.report.evidence import TaskRuns, by_task
from esgd_hpc.report.evidence_charts import Chart, figure_1, figure_2
from esgd_hpc.report.figures import chart_of, figures_of
from esgd_hpc.report.lineage import Family, family_of
from esgd_hpc.report.recipe import recipe_items, setting

MOST_RELATIVES = 150
"""Individuals in the drawing of a family."""


def render_page(runs: Mapping[str, Checkpoint]) -> bytes:
    """Return the page of one or several runs, by their names, in UTF-8.

    Raises ModuleNotFoundError without plotly.
    """
    plotly = (resources.files("plotly") / "package_data" / "plotly.min.js").read_text("utf-8")
    scripts = {"plotly": _script(plotly), "page": _script(_source("page.js"))}
    families = {name: _family(checkpoint) for name, checkpoint in runs.items()}
    by_runs = [
        {"name": name, **figures_of(checkpoint, families[name])}
        for name, checkpoint in runs.items()
    ]
    evidence = [_evidence(task) for task in by_task(runs)]
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FunctionLoader(_source),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    text = environment.get_template("page.html").render(
        title=_title(runs),
        policy=_policy(*scripts.values()),
        style=Markup(_source("page.css")),
        scripts=scripts,
        runs=[_run(name, checkpoint, families[name]) for name, checkpoint in runs.items()],
        comparison=tables.comparison_table(runs) if len(runs) > 1 else None,
        tasks=sorted({str(setting(checkpoint.recipe, "task")) for checkpoint in runs.values()}),
        evidence=evidence,
        data={
            "runs": by_runs,
            "tasks": [{f.kind: chart_of(f.chart) for f in task["figures"]} for task in evidence],
        },
        version=metadata.version("esgd-hpc"),
    )
    # The name of a folder may hold bytes that are no text.
    return text.encode("utf-8", errors="backslashreplace")


def _source(name: str) -> str:
    return (resources.files("esgd_hpc") / "report" / name).read_text("utf-8")


def _script(text: str) -> Markup:
    """Return a script of ours so that nothing in it ends its element early."""
    return Markup(text.replace("\r", "").replace("</script", "<\\/script"))


def _policy(*scripts: str) -> str:
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:;"
        " base-uri 'none'; form-action 'none'"
    )


def _title(runs: Mapping[str, Checkpoint]) -> str:
    return next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs"


def _family(checkpoint: Checkpoint) -> Family:
    best = checkpoint.best()
    until = _reached(checkpoint.history.rows, best.fitness, checkpoint.generation)
    in_population = checkpoint.champion is None
    return family_of(
        best.uid,
        checkpoint.history,
        until=checkpoint.generation if in_population else until,
        most=MOST_RELATIVES,
    )


def _reached(rows: list[GenerationRow], fitness: float, last: int) -> int:
    """Return the first generation in which a fitness was reached."""
    return next((row.generation for row in rows if row.best_ever <= fitness), last)


class _EvidenceFigure(NamedTuple):
    """One of the paper's figures; `kind` is what page.js knows it by."""

    kind: str
    chart: Chart


def _evidence(task: TaskRuns) -> dict[str, Any]:
    """Return what the template shows of the paper's tables and figures for one task."""
    charts = (("figure1", figure_1(task)), ("figure2", figure_2(task)))
    return {
        "task": task.task,
        "table_1": evidence_tables.table_1(task),
        "notes_1": evidence_tables.notes_1(task),
        "figures": [_EvidenceFigure(kind, chart) for kind, chart in charts if chart],
        "tables_6": evidence_tables.tables_6(task),
        "notes_6": evidence_tables.notes_6(task),
    }


def _run(name: str, checkpoint: Checkpoint, family: Family) -> dict[str, Any]:
    """Return what the template shows of one run."""
    shown, missing = facts.figures(checkpoint, family)
    notes = []
    if checkpoint.commit.format == 1:
        notes.append(
            "This run was written in format 1, which records the rows of the history alone: no"
            " individuals, SGD steps, children, quartiles or diversity."
        )
    numbers = [
        tables.population_table(checkpoint),
        tables.generations_table(checkpoint),
        tables.family_table(family) if checkpoint.history.births else None,
        tables.failures_table(checkpoint),
        tables.changes_table(checkpoint),
    ]
    return {
        "name": name,
        "headline": facts.headline(checkpoint),
        "tiles": facts.tiles(checkpoint),
        "figures": shown,
        "missing": missing,
        "notes": notes,
        "tables": [table for table in numbers if table],
        "recipe": list(recipe_items(checkpoint.recipe)),
        "provenance": list(checkpoint.provenance.items()),
    }
