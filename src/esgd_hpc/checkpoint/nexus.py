"""How a file tells NeXus viewers (silx, h5web) what it is, and what to draw with which labels.

`@default` leads from the root through the NXentry `plots` to an NXdata group. That holds hard links
to the columns it draws: `@signal` and `@auxiliary_signals` over `@axes`, labelled by the columns'
`@long_name`. Infinite fitness needs no care: both viewers leave a gap and scale by the rest.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import h5py

from esgd_hpc.checkpoint import hdf5

PLOTS = "plots"


def run_name(recipe: Mapping[str, Any]) -> str:
    """Return a run in a few words. `recipe` is from `config.recipe_data`."""
    keys = ("task", "method", "seed")
    return ", ".join(f"{key} {recipe[key]}" for key in keys if key in recipe)


def describe(
    file: h5py.File, what: str, recipe: Mapping[str, Any], provenance: Mapping[str, str]
) -> None:
    """Write what a file is and what made it, for people, into its root and `provenance`."""
    file.attrs["NX_class"] = "NXroot"
    file.attrs["default"] = PLOTS
    texts = {key: recipe[key] for key in ("task", "method") if key in recipe}
    title = f"{what}: {run_name(recipe)}"
    hdf5.write_text_attributes(file, {"title": title, "creator": "esgd-hpc", **texts})
    if "seed" in recipe:
        file.attrs["seed"] = recipe["seed"]
    hdf5.write_text_attributes(file.create_group("provenance"), provenance)


def create_plots(group: h5py.Group, default: str) -> h5py.Group:
    """Make the empty group of plots beside the columns that they draw."""
    plots = group.create_group(PLOTS)
    plots.attrs["NX_class"] = "NXentry"
    plots.attrs["default"] = default
    return plots


def add_plot(
    plots: h5py.Group,
    name: str,
    title: str,
    signals: Sequence[str],
    axes: Sequence[str],
    *,
    log: Sequence[str] = (),
) -> None:
    """Draw columns that lie beside the group of plots, see `make_plot`."""
    plot = plots.create_group(name)
    for column in dict.fromkeys((*signals, *axes)):
        plot[column] = plots.parent[column]
    hdf5.write_text(plot, "title", title)
    make_plot(plot, signals, axes, log=log)


def make_plot(
    group: h5py.Group, signals: Sequence[str], axes: Sequence[str], *, log: Sequence[str] = ()
) -> None:
    """Let a group draw columns of its own.

    As curves where there is one axis, an image where the signals have two dimensions, and a scatter
    where they have one but two axes: x and y, with a signal as colour. `log` names the columns
    whose scale is logarithmic, unless they have negative values; what is 0 is then not drawn.
    """
    group.attrs["NX_class"] = "NXdata"
    group.attrs["signal"] = signals[0]
    group.attrs["axes"] = list(axes)
    if signals[1:]:
        group.attrs["auxiliary_signals"] = list(signals[1:])

    def scale(column: str) -> str:
        return "log" if column in log and not (group[column][...] < 0).any() else "linear"

    # Said in any case: silx otherwise keeps the scales of what it showed before. h5web knows the
    # scales of axes by the singular.
    scales = list(map(scale, axes))
    style = {
        "signal_scale_type": scale(signals[0]),
        "axes_scale_types": scales,
        "axes_scale_type": scales,
    }
    group.attrs["SILX_style"] = json.dumps(style)
