"""What a task needs, as one process finds out by making it, before any data is read."""

from collections.abc import Mapping
from typing import NamedTuple

from esgd_hpc import pulse
from esgd_hpc.config import Drawn, Recipe
from esgd_hpc.data.store import Stored
from esgd_hpc.layout import Layout
from esgd_hpc.tasks import check_options, load_task, missing_data_of, stored_data
from esgd_hpc.tasks.null import NULL, null_layout


class Needs(NamedTuple):
    """What is known of a task without its data."""

    layout: Layout
    hyperparameters: Mapping[str, Drawn]
    """What the task declares that a draw covers."""
    stored: list[Stored]
    """Datasets of prepared files, each once."""
    missing: list[Stored]
    """Those of them that are not there."""

    @property
    def data_bytes(self) -> int:
        """Bytes of the datasets that are there, which a node holds once."""
        return sum(data.num_bytes for data in self.stored)


def needs_of(recipe: Recipe) -> Needs:
    """Make the recipe's task and return what it needs; see `load_task` for what it raises."""
    if recipe.task == NULL:
        check_options(NULL, null_layout, recipe.task_options)
        return Needs(null_layout(**recipe.task_options), {}, [], [])
    from esgd_hpc.genome import Genome

    with pulse.untimed(f"loading task {recipe.task}"):  # code of users
        task = load_task(recipe.task, recipe.task_options)
        layout = Genome(task.model()).layout
    stored = list(dict.fromkeys(stored_data(task)))
    return Needs(layout, task.hyperparameters, stored, missing_data_of(task))
