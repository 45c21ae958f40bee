"""The null task: weights without a network, to measure what coordination costs by itself.

Nothing trains. An individual is P random numbers and its fitness their sphere function, the mean of
squares, over at most `SAMPLE` evenly spaced places. No torch is imported.
"""

import numpy as np

from esgd_hpc.errors import InputError
from esgd_hpc.layout import Entry, Layout
from esgd_hpc.population import Weights

NULL = "null"
"""The name of the task."""

SAMPLE = 1024


def null_layout(parameters: int = 1_000_000) -> Layout:
    """Return the layout of one vector of so many parameters; its arguments are `task_options`."""
    if isinstance(parameters, bool) or not isinstance(parameters, int) or parameters < 1:
        raise InputError(
            f"task_options.parameters = {parameters!r}: a whole number of at least 1, the size"
            " of an individual"
        )
    entry = Entry(
        name="weights",
        offset=0,
        size=parameters,
        shape=(parameters,),
        kind="parameter",
        dtype="float32",
    )
    return Layout(entries=(entry,))


def sphere(weights: Weights) -> float:
    """Return the mean of squares over a sample of the places of a flat vector, shape [P]."""
    step = max(1, len(weights) // SAMPLE)
    sample = weights[: SAMPLE * step : step].astype(np.float64)
    return float(np.square(sample).mean())
