"""Which plots of a history silx and h5web draw.

Curves over the generations, images of all survivors and children, and two scatters: the tables of
individuals and of SGD steps in `lineage` are plots themselves.
"""

from collections.abc import Sequence

import h5py
import numpy as np

from esgd_hpc.checkpoint import nexus


def write_plots(history: h5py.Group, run: str) -> None:
    """Add the plots to a group with a whole history. `run` is the name of the run in the titles."""
    plots = nexus.create_plots(history, default="fitness")

    def curves(name: str, title: str, columns: Sequence[str], log: Sequence[str] = ()) -> None:
        nexus.add_plot(plots, name, f"{title}\n({run})", columns, ["generation"], log=log)

    def image(name: str, title: str, dimension: str, columns: Sequence[str]) -> None:
        signals = [f"{dimension}_{column}" for column in columns]
        axes = ["generation", dimension]
        nexus.add_plot(plots, name, f"{title}: {run}", signals, axes, log=signals[:1])

    def parts(name: str, title: str, prefix: str, columns: Sequence[str]) -> None:
        """Draw a whole and its parts; the title names them in the order of viewers' colours."""
        words = [c.removeprefix(prefix) if c.startswith(prefix) else "all" for c in columns]
        curves(name, f"{title}: {', '.join(words)}", columns)

    def columns_of(prefix: str) -> list[str]:
        return sorted(column for column in history if column.startswith(prefix))

    band = ["best", "lower_quartile", "median", "upper_quartile", "worst", "elite_average"]
    curves("fitness", "Fitness: best, quartiles, worst, average of the elite", band)
    curves("elite", "Share of children in the elite", ["elite_offspring_fraction"])
    rates = ["best_learning_rate"]
    curves("learning_rate", "Learning rate of the best, where it was trained", rates, log=rates)
    distances = ["diversity", *columns_of("diversity_")]
    parts("diversity", "Mean distance of two individuals", "diversity_", distances)
    counts = columns_of("individuals_")
    parts("optimizers", "Individuals by last optimizer", "individuals_", counts)
    # Viewers stress the first curve: the phase that takes longest.
    seconds = sorted(columns_of("seconds_"), key=lambda name: -np.nansum(history[name]))
    if seconds:
        parts("seconds", "Wall time in seconds", "seconds_", seconds)
    if "survivor" in history:
        columns = ["fitness", "learning_rate", "optimizer", "origin"]
        image("survivors", "Survivors", "survivor", columns)
        if len(history["offspring"]):
            image("children", "Children", "offspring", ["fitness", "sigma", "selected"])
    _show_individuals(history["lineage/individual"])
    _show_steps(history["lineage/step"])


def _show_individuals(table: h5py.Group) -> None:
    table["born"].attrs["long_name"] = "generation of birth"
    table["fitness"].attrs["long_name"] = "fitness at birth"
    table.attrs["title"] = "Individuals ever selected: fitness at birth"
    nexus.make_plot(table, ["sigma", "uid", "origin"], ["born", "fitness"], log=["fitness"])


def _show_steps(table: h5py.Group) -> None:
    table["fitness"].attrs["long_name"] = "fitness after the step"
    table["back_offs"].attrs["long_name"] = "epochs backed off"
    table["learning_rate"].attrs["long_name"] = "learning rate"
    table["seconds"].attrs["units"] = "s"
    table.attrs["title"] = "SGD steps: learning rates drawn"
    colours = ["fitness", "back_offs", "optimizer"]
    axes = ["generation", "learning_rate"]
    nexus.make_plot(table, colours, axes, log=["fitness", "learning_rate"])
