"""Ray Tune's synchronous PBT on the epochs of a recipe, two trials at a time.

    python bench/peers/ray_pbt.py RECIPE --report FILE [--set KEY=VALUE]...

Perturbation and checkpoint after each generation. Runs in the environment of bench/peers.py.
"""

import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from bare_loop import Work, report
from individual import new_optimizer, optimizer_names, peer_arguments, ranges
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

from esgd_hpc.recipe_file import load_recipe

PROCESSES = 2
WEIGHTS = "weights.pt"


class Individual(tune.Trainable):  # type: ignore[misc]
    """A trial: one individual, a generation each step."""

    def setup(self, config: Mapping[str, Any]) -> None:
        self._recipe = load_recipe(config["recipe"], config["overrides"])
        self._work = Work(self._recipe)
        self._model = self._work.model()

    def step(self) -> dict[str, float]:
        started = time.perf_counter()
        optimizer = new_optimizer(self._model, self.config)
        for _ in range(self._recipe.sgd.epochs):
            loss = self._work.train_epoch(self._model, optimizer)
        # Tune's own tables were seen to lose rows of trials that changed their actor.
        with open(self.config["log"], "a") as log:
            log.write(f"{time.perf_counter() - started} {self._recipe.sgd.epochs} {loss}\n")
        return {"loss": loss}

    def save_checkpoint(self, folder: str) -> None:
        torch.save(self._model.state_dict(), Path(folder) / WEIGHTS)

    def load_checkpoint(self, folder: str) -> None:
        self._model.load_state_dict(torch.load(Path(folder) / WEIGHTS))

    def reset_config(self, config: Mapping[str, Any]) -> bool:
        """Become another trial, where actors are reused; its weights come by `load_checkpoint`."""
        self._model = self._work.model()
        return True


def main() -> None:
    """Run PBT and report."""
    arguments = peer_arguments(__doc__)
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    random.seed(recipe.seed)
    space: dict[str, Any] = {name: tune.uniform(*ends) for name, ends in ranges(recipe).items()}
    space["optimizer"] = list(optimizer_names(recipe))
    # Ray's daemons may still write there when they are told to end.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=PROCESSES,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=f"{folder}/ray",
        )
        tuner = tune.Tuner(
            tune.with_resources(Individual, {"cpu": 1}),
            param_space={
                "recipe": arguments.recipe,
                "overrides": arguments.overrides,
                "log": f"{folder}/log",
            },
            tune_config=tune.TuneConfig(
                metric="loss",
                mode="min",
                num_samples=recipe.population.parents,
                reuse_actors=True,  # else each perturbed trial starts a process
                scheduler=PopulationBasedTraining(
                    time_attr="training_iteration",
                    perturbation_interval=1,
                    hyperparam_mutations=space,
                    synch=True,
                ),
            ),
            run_config=tune.RunConfig(
                storage_path=f"{folder}/results",
                stop={"training_iteration": recipe.generations},
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
                verbose=0,
            ),
        )
        tuner.fit()
        ray.shutdown()
        steps = [line.split() for line in Path(folder, "log").read_text().splitlines()]
    seconds, epochs, losses = zip(*steps, strict=True)
    report(
        arguments.report,
        sum(map(float, seconds)),
        sum(map(int, epochs)),
        min(map(float, losses)),
    )


if __name__ == "__main__":
    main()
