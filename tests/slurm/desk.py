"""A user's folder: a recipe, job scripts that were edited at their tops, and the runs they make."""

import re
import sys
from pathlib import Path

from esgd_hpc.checkpoint.reader import open_checkpoint, population_digest
from slurm.cluster import Cluster, Job

JOBS = Path(__file__).parents[2] / "jobs"
ENVIRONMENT = Path(sys.prefix).with_name("env.sh")
"""What users source, beside the virtual environment of these tests."""
GENERATIONS = 6
SECONDS_TO_END = 120
"""Of a job, with all that it waits for."""
SMALL = ("--cpus-per-task=1", "--gpus-per-node=0")

TASK = """
import os
import time

import torch

from esgd_hpc import ClassificationTask

# Only where a job starts for the first time.
SLOW_FROM = None if "SLURM_RESTART_COUNT" in os.environ else os.environ.get("SLOW_FROM")

class Clusters(ClassificationTask):
    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        classes = torch.arange(96) % 4
        inputs = torch.randn(4, 8, generator=generator)[classes]
        inputs += torch.randn(96, 8, generator=generator)
        super().__init__(
            training=(inputs[:64], classes[:64]), validation=(inputs[64:], classes[64:])
        )
        self.batches = 0
        print(f"a rank on {os.uname().nodename}", flush=True)

    def model(self):
        return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))

    def augment(self, batch):
        self.batches += 1
        if SLOW_FROM and self.batches >= int(SLOW_FROM):
            if self.batches == int(SLOW_FROM):
                print("slow from here", flush=True)
            time.sleep(1.0)
        return batch
"""

RECIPE = f"""
task = "clusters:Clusters"
generations = {GENERATIONS}

[population]
parents = 4
offspring = 4
initialization = "perturb"

[sgd]
epochs = 2
batch_size = 16
[[sgd.optimizers]]
name = "adam"
learning_rate = [1e-3, 1e-2]

[topology]
ranks_per_group = 2
gradient_averaging = "horovod"
"""


IN_GENERATION_2 = 4 * 8 + 8 + 1
"""The batch with which one group begins the second individual there; each has eight batches."""


class Desk:
    """The folder from which jobs are submitted."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        (folder / "clusters.py").write_text(TASK)
        (folder / "recipe.toml").write_text(RECIPE)

    def edited(self, script: str, name: str, **settings: str) -> Path:
        """Write a shipped script with other values of the variables at its top."""
        text = (JOBS / script).read_text()
        standard = {"RECIPE": "recipe.toml", "ENVIRONMENT": str(ENVIRONMENT), "JOBS": str(JOBS)}
        for variable, value in {**standard, "OUTPUT": name, **settings}.items():
            text, count = re.subn(rf"(?m)^{variable}=\S*", f"{variable}={value}", text)
            assert count == 1, f"{script} has {count} lines {variable}=..."
        path = self.folder / f"{name}.sh"
        path.write_text(text)
        return path

    def submit(self, script: Path, *options: str, slow_from: int = 0) -> Job:
        """Submit a script; sbatch's options win over those in it.

        `slow_from` counts batches of a rank. From there on each takes a second, about three minutes
        for the run, until the job starts again.
        """
        variables = {"SLOW_FROM": str(slow_from)} if slow_from else {}
        return self.cluster.submit(script, *options, cwd=self.folder, variables=variables)

    def digest(self, output: str) -> str:
        """Return the digest of a run that must be finished."""
        checkpoint = open_checkpoint(self.folder / output)
        assert checkpoint.generation == GENERATIONS
        return population_digest(checkpoint)
