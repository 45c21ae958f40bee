"""What weights say of each frame of a split, as Kaldi archives for a decoder that is not ours.

One process without MPI; of the prepared file it reads that split alone.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from esgd_hpc.checkpoint.reader import Checkpoint
from esgd_hpc.data.kaldi import write_matrices
from esgd_hpc.data.speech_store import SPLITS, utterance_ids
from esgd_hpc.data.store import missing_data, read
from esgd_hpc.device import choose_device
from esgd_hpc.errors import InputError
from esgd_hpc.genome import Genome
from esgd_hpc.population import Weights
from esgd_hpc.recipe_file import recipe_from
from esgd_hpc.tasks import load_task
from esgd_hpc.tasks.utterances import SpeechTask


def write_log_likelihoods(
    checkpoint: Checkpoint, weights: Weights, split: str, folder: Path
) -> tuple[Path, str]:
    """Write SPLIT.ark and SPLIT.scp; return the latter's path and what is in them.

    Each utterance has one matrix, float32 [T, S]: log posteriors less log priors of the states.
    Raises InputError for a task without speech, data that is missing, and a network that is not
    that of the checkpoint; RunError where the disk refuses.
    """
    recipe = recipe_from(checkpoint.recipe, source=f"the recipe in {checkpoint.path}")
    device = choose_device(recipe.topology, 0, or_cpu=True)
    task = load_task(recipe.task, recipe.task_options)
    if not isinstance(task, SpeechTask):
        raise InputError(
            f'--log-likelihoods: task = "{recipe.task}" has no frames of speech; it is for runs of'
            " bn50, swb300 and what stands in for them"
        )
    needed = {n: d for n, d in task.shared.items() if n.startswith(f"{split}/")}
    if task.store.is_missing:
        raise missing_data(task.store["log_priors"])
    if not needed:
        there = [name for name in SPLITS if f"{name}/features" in task.shared]
        raise InputError(f"--split {split}: {task.store.file} has none; it has {', '.join(there)}")
    needed["log_priors"] = task.shared["log_priors"]
    task.shared = {name: torch.from_numpy(read(d)).to(device) for name, d in needed.items()}  # type: ignore[arg-type]
    torch.set_num_threads(recipe.topology.threads_per_rank)
    genome = Genome(task.model().to(device))
    if genome.layout != checkpoint.layout:
        raise InputError(
            f'task = "{recipe.task}": its model differs from the one in {checkpoint.path}'
            f" ({genome.layout.size} values instead of {checkpoint.layout.size}, or other tensors);"
            " use the data and the task as they were in the run"
        )
    genome.load(weights)
    genome.module.eval()
    names, utterances = utterance_ids(task.store, split), task.utterances(split)

    def matrices() -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        for name, (first, end) in zip(names, utterances, strict=True):
            yield name, task.log_likelihoods(genome.module, split, first, end)

    num_frames, num_states = utterances[-1][1], task.sizes.states
    script = write_matrices(folder, split, matrices(), 4 * num_frames * num_states)
    return script, f"{len(names):,} utterances, {num_frames:,} frames, {num_states:,} states"
