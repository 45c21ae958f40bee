"""Whether a node's main memory can hold a job's individuals. Loads torch, so only where asked."""

from esgd_hpc.errors import InputError
from esgd_hpc.jobs.request import Job
from esgd_hpc.plan_text import TRAINING_COPIES, held_individuals, size_text


def memory_text(job: Job) -> str:
    """Return what a node needs, in words; raise InputError where it does not have that.

    Without data, activations, and what Python, torch and MPI take themselves.
    """
    from esgd_hpc.tasks.needs import needs_of

    one = needs_of(job.recipe).layout.size * 4
    leaders = -(-job.ranks_per_node // job.recipe.topology.ranks_per_group)
    held = held_individuals(job.recipe, job.groups)
    needed = leaders * held * one
    told = f"{leaders} leaders with up to {held} individuals of {size_text(one)}"
    if not job.gpus_per_node:
        needed += job.ranks_per_node * TRAINING_COPIES * one
        told += f", and training on {job.ranks_per_node} ranks"
    available = job.memory_per_node * 2**30
    if needed > available:
        raise InputError(
            f"--memory-per-node {job.memory_per_node}: a node needs {size_text(needed)} ({told});"
            " take more nodes, fewer ranks a node, larger groups, or checkpoint.background = false"
        )
    return f"memory of a node: {size_text(needed)} of {size_text(available)} ({told}), without data"
