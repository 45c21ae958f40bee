"""The generation loop: Algorithm 1 over the ranks of a world."""

from collections.abc import Callable, Iterable, Mapping

import msgspec

from esgd_hpc import pulse
from esgd_hpc.config import Drawn, Recipe
from esgd_hpc.diversity import mean_distances, sampled, sketch
from esgd_hpc.errors import RunError
from esgd_hpc.evolution.step import Anchor, evolution_step
from esgd_hpc.history import OPTIMIZERS, GenerationRow, History, generation_row, optimizer_of
from esgd_hpc.layout import Layout
from esgd_hpc.learner import Learner
from esgd_hpc.parallel.exchange import gather_records
from esgd_hpc.parallel.interruption import Interruption
from esgd_hpc.parallel.topology import Topology
from esgd_hpc.population import Individual, Population
from esgd_hpc.saving import Saving
from esgd_hpc.sgd.step import sgd_step
from esgd_hpc.underway import Underway


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What the loop works with; complete on every rank."""

    recipe: Recipe
    hyperparameters: Mapping[str, Drawn]
    topology: Topology
    learner: Learner
    anchor: Anchor | None
    saving: Saving
    report: Callable[[Population, History], None]
    """Shows a finished generation on rank 0."""
    interruption: Interruption
    should_save: Callable[[], bool]
    """Whether this rank was asked for a checkpoint since it was last asked."""


def evolve(
    population: Population, history: History, setting: Setting, underway: Underway | None = None
) -> Underway | None:
    """Carry the population from its generation to the last one, in place.

    Goes on with the generation that is `underway`. Returns None if it got to the last one, or else
    the generation that was not finished because a rank was asked to stop or time ran out; what is
    done of it is saved. Collective over the world.
    """
    recipe, topology = setting.recipe, setting.topology
    for k in range(population.generation + 1, recipe.last_generation + 1):
        underway = underway or Underway(generation=k, before=population.individuals)
        setting.interruption.keep_free(setting.saving.longest_seconds())
        if not train_and_breed(population, underway, setting):
            setting.saving.save_underway(population, history, underway)
            return underway
        population.generation = k
        last = k == recipe.last_generation
        if last and setting.learner.has_final_scores:
            with underway.timed("final_scores"):
                add_final_scores(population, topology, setting.learner)
        with underway.timed("diversity"):
            diversity = measure_diversity(population, topology, setting.learner.layout)
        row = generation_row(
            population,
            underway.before,
            recipe,
            underway.seconds,
            diversity,
            underway.traffic,
        )
        check_theorem_1(row, underway.before, population.individuals, recipe)
        history.rows.append(row)
        if topology.world.rank == 0:
            history.remember(
                underway.before,
                underway.trained,
                underway.offspring,
                set(underway.selected),
                population,
            )
        requests = (setting.interruption.requested(), setting.should_save())
        with pulse.waiting(f"waiting for all ranks at the end of generation {k}"):
            asked = topology.world.allgather(requests)
        stop = any(stop for stop, _ in asked) and not last
        with underway.timed("checkpoint"):
            save = any(save for _, save in asked)
            setting.saving.save(population, history, must=last or stop, asked=save)
        setting.report(population, history)
        underway = None
        if stop:
            return Underway(generation=k + 1, before=population.individuals)
    return None


def train_and_breed(population: Population, underway: Underway, setting: Setting) -> bool:
    """Take the SGD step and the evolution steps of a generation that are not done yet.

    Returns whether all are done; if not, the run is to stop. Collective over the world.
    """
    recipe, topology, seconds = setting.recipe, setting.topology, underway.seconds
    had_to_train = not underway.is_trained
    with underway.timed("sgd"):
        is_trained = sgd_step(
            population,
            underway,
            recipe,
            setting.hyperparameters,
            topology,
            setting.learner,
            setting.interruption,
        )
    if had_to_train and topology.num_groups > 1:
        idle = idle_seconds(underway.trained, population.trained_by, topology.num_groups)
        seconds["sgd"] -= idle
        seconds["idle"] = seconds.get("idle", 0.0) + idle
    if not is_trained:
        return False
    if recipe.method == "esgd" and underway.generation <= recipe.generations:
        with underway.timed("evolution_rest"):
            while underway.steps < recipe.evolution.steps:
                if not evolution_step(
                    population,
                    underway,
                    recipe,
                    setting.hyperparameters,
                    topology,
                    setting.learner,
                    setting.anchor,
                    setting.interruption,
                ):
                    return False
    return True


def idle_seconds(
    trained: Iterable[Individual], trained_by: Mapping[int, int], num_groups: int
) -> float:
    """Return how long a group waited for the slowest one in the SGD step, on average."""
    busy = [0.0] * num_groups
    for record in trained:
        if record.uid in trained_by:
            busy[trained_by[record.uid]] += record.seconds
    return max(busy) - sum(busy) / num_groups


def measure_diversity(
    population: Population, topology: Topology, layout: Layout
) -> dict[str, float]:
    """Return the mean distance of individuals, see `diversity.mean_distances`, on every rank.

    Collective over the world.
    """
    world = topology.world
    sketches = {}
    for uid in sampled(population.owner):
        if uid in population.weights:
            sketches[uid] = sketch(population.weights[uid], layout)
            pulse.progress()
    with pulse.waiting("waiting for all ranks, measuring diversity"):
        parts = world.gather(sketches)
    found: dict[str, float] = {}
    if parts is not None:
        sketches = {uid: s for part in parts for uid, s in part.items()}
        by_optimizer: dict[str, list[int]] = {
            name: [i.uid for i in population.individuals if optimizer_of(i) == name]
            for name in OPTIMIZERS
        }
        found = mean_distances(sketches, by_optimizer)
    with pulse.waiting("waiting for rank 0, measuring diversity"):
        result: dict[str, float] = world.bcast(found)
    return result


def add_final_scores(population: Population, topology: Topology, learner: Learner) -> None:
    """Add what the task says of each individual after the last generation to its metrics.

    Collective over the world.
    """
    scored = []
    for individual in population.owned_by(topology.group_number):
        learner.load(population.weights.get(individual.uid))
        scored.append(_with_metrics(individual, learner.final_scores()))
    population.individuals = gather_records(topology, scored if topology.is_leader else [])
    if population.champion is not None:
        champion = population.champion
        if topology.group_number == 0:
            learner.load(population.champion_weights)
            champion = _with_metrics(champion, learner.final_scores())
        with pulse.waiting("waiting for the champion's test scores"):
            population.champion = topology.world.bcast(champion)


def _with_metrics(individual: Individual, metrics: Mapping[str, float]) -> Individual:
    return msgspec.structs.replace(individual, metrics={**individual.metrics, **metrics})


def check_theorem_1(
    row: GenerationRow, before: list[Individual], after: list[Individual], recipe: Recipe
) -> None:
    """Raise RunError if the m-elitist average fitness rose although back-off is always applied.

    All fitnesses are of one fixed data set, so this is a defect of ours if it ever happens.
    """
    if row.theorem_1_holds or recipe.sgd.backoff_probability < 1.0:
        return

    def elite(individuals: list[Individual]) -> str:
        ranked = sorted(individuals, key=lambda i: (i.fitness, i.uid))[: recipe.num_elite]
        return ", ".join(f"{i.uid}: {i.fitness!r}" for i in ranked)

    raise RunError(
        f"internal error: Theorem 1 is violated in generation {row.generation}: the"
        f" {recipe.num_elite}-elitist average fitness rose to {row.elite_average!r};"
        f" elite before (uid: fitness) {elite(before)}; after {elite(after)}"
    )
