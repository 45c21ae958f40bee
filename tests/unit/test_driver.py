"""The generation loop: what its history says, when it saves, stops and refuses to go on."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esgd_hpc import driver
from esgd_hpc.config import Recipe
from esgd_hpc.driver import Setting, check_theorem_1, evolve, idle_seconds
from esgd_hpc.errors import RunError
from esgd_hpc.history import GenerationRow, History, generation_row
from esgd_hpc.layout import Layout
from esgd_hpc.population import Draw, Individual, Origin, Population
from esgd_hpc.recipe_file import recipe_from
from esgd_hpc.underway import Underway

INF = math.inf


def recipe(**tables: Any) -> Recipe:
    sgd = {"optimizers": [{"name": "sgd", "learning_rate": 0.1}], **tables.pop("sgd", {})}
    population = {"parents": 4, **tables.pop("population", {})}
    evolution = {"elite_fraction": 0.5, **tables.pop("evolution", {})}
    return recipe_from(
        {"task": "digits", "sgd": sgd, "population": population, "evolution": evolution, **tables}
    )


def individuals(*fitness: float, first_uid: int = 0) -> list[Individual]:
    return [Individual(uid=first_uid + i, fitness=f) for i, f in enumerate(fitness)]


def population(members: Sequence[Individual], generation: int = 3) -> Population:
    return Population(
        generation=generation,
        individuals=list(members),
        owner={i.uid: 0 for i in members},
        next_uid=100,
        weights={},
    )


# History ------------------------------------------------------------------------------------------


def test_a_row_has_the_numbers_of_its_generation() -> None:
    draw = Draw(optimizer="adam", learning_rate=0.25)
    diversity = {"": 1.5, "adam": 0.5, "none": math.nan}
    members = [
        Individual(uid=3, fitness=4.0),
        Individual(uid=5, fitness=1.0, origin="offspring", born=3, draw=draw),
        Individual(uid=7, fitness=2.0, origin="offspring", born=2),
        Individual(uid=8, fitness=3.0, origin="offspring", born=3),
    ]
    before = individuals(1.5, 2.0, 9.0, 9.0)
    seconds = {"sgd": 1.0, "evolution": 0.5}
    row = generation_row(population(members), before, recipe(), seconds, diversity)
    assert row == GenerationRow(
        generation=3,
        best=1.0,
        best_ever=1.0,
        elite_average=1.5,
        lower_quartile=1.0,
        median=2.5,
        upper_quartile=3.0,
        worst=4.0,
        elite_offspring_fraction=0.5,
        best_uid=5,
        best_optimizer="adam",
        best_learning_rate=0.25,
        theorem_1_holds=True,
        diversity=1.5,
        diversity_by_optimizer={"adam": 0.5},
        individuals_by_optimizer={"none": 3, "sgd": 0, "adam": 1},
        seconds=seconds,
    )


def test_the_initial_row_has_no_offspring_and_no_generation_before_it() -> None:
    row = generation_row(population(individuals(2.0, 1.0, 1.0, INF), 0), None, recipe(), {})
    assert (row.generation, row.best_uid, row.best_optimizer) == (0, 1, "none")
    assert (row.best_learning_rate, row.elite_offspring_fraction) == (0.0, 0.0)
    assert row.theorem_1_holds


def test_failed_individuals_leave_a_row_of_numbers() -> None:
    row = generation_row(population(individuals(INF, 1.0, INF, INF)), None, recipe(), {})
    assert (row.best, row.worst, row.median, row.elite_average) == (1.0, INF, INF, INF)
    assert (row.lower_quartile, row.upper_quartile) == (1.0, INF)


@given(
    st.lists(st.floats(0.0, 1e6) | st.just(INF), min_size=4, max_size=4),
    st.lists(st.floats(0.0, 1e6) | st.just(INF), min_size=4, max_size=4),
)
def test_the_row_says_whether_theorem_1_holds(before: list[float], after: list[float]) -> None:
    row = generation_row(population(individuals(*after)), individuals(*before), recipe(), {})
    averages = [sum(sorted(fitness)[:2]) / 2 for fitness in (before, after)]
    assert row.theorem_1_holds == (averages[1] <= averages[0])


# Theorem 1 ----------------------------------------------------------------------------------------


def row_of(before: list[Individual], after: list[Individual], settings: Recipe) -> GenerationRow:
    return generation_row(population(after, 6), before, settings, {})


def test_a_rise_of_the_elitist_average_is_an_error_with_all_that_shows_it() -> None:
    before = individuals(1.0, 0.1 + 0.2, 5.0, 6.0)
    after = individuals(0.5, 7.0, 0.875, INF, first_uid=20)
    settings = recipe()
    with pytest.raises(RunError) as caught:
        check_theorem_1(row_of(before, after, settings), before, after, settings)
    text = str(caught.value)
    assert "internal error: Theorem 1" in text
    assert "generation 6" in text
    assert "2-elitist average fitness rose to 0.6875" in text
    assert "before (uid: fitness) 1: 0.30000000000000004, 0: 1.0;" in text
    assert text.endswith("after 20: 0.5, 22: 0.875")


def test_the_smallest_rise_is_seen() -> None:
    before = individuals(1.0, 2.0, 2.0, 2.0)
    after = individuals(1.0, math.nextafter(2.0, 3.0), 2.5, 2.5)
    settings = recipe()
    with pytest.raises(RunError, match="Theorem 1"):
        check_theorem_1(row_of(before, after, settings), before, after, settings)


@pytest.mark.parametrize("probability", [0.0, 0.7, 0.999])
def test_without_back_off_always_a_rise_is_noted_but_no_error(probability: float) -> None:
    before, after = individuals(1.0, 1.0, 1.0, 1.0), individuals(2.0, 2.0, 2.0, 2.0)
    settings = recipe(sgd={"backoff_probability": probability})
    row = row_of(before, after, settings)
    assert not row.theorem_1_holds
    check_theorem_1(row, before, after, settings)


def test_a_worse_rest_is_no_rise() -> None:
    before, after = individuals(1.0, 2.0, 3.0, 4.0), individuals(1.0, 2.0, 9.0, INF)
    settings = recipe()
    check_theorem_1(row_of(before, after, settings), before, after, settings)


# The loop -----------------------------------------------------------------------------------------


class World:
    """The collectives of one rank, beside which others may have been asked to stop or to save."""

    rank = 0

    def __init__(self, others: Sequence[tuple[bool, bool]] = ()) -> None:
        self.others = others

    def allgather(self, mine: tuple[bool, bool]) -> list[tuple[bool, bool]]:
        return [mine, *self.others]

    def gather(self, mine: Any) -> list[Any]:
        return [mine]

    def bcast(self, mine: Any) -> Any:
        return mine


class Topology:
    num_groups = 2

    def __init__(self, world: World) -> None:
        self.world = world


class Learner:
    has_final_scores = False
    layout = Layout(entries=())


class Loop:
    """Runs `evolve` with steps that only note that they were called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, settings: Recipe, world: World) -> None:
        self.events: list[str] = []
        self.history = History()
        self.population = population(individuals(1.0, 2.0, 3.0, 4.0), 0)
        self.stop_in_generation = self.save_in_generation = 0
        self.interrupt_sgd_in = self.interrupt_evolution_in = 0

        def sgd(members: Population, underway: Underway, *_: object) -> bool:
            self.events.append(f"sgd {underway.generation}")
            if self.interrupt_sgd_in == underway.generation:
                return False
            draw = Draw(optimizer="sgd", learning_rate=0.1)
            members.individuals = [
                msgspec.structs.replace(i, draw=draw) for i in members.individuals
            ]
            underway.trained = list(members.individuals)
            return True

        def evolution(members: Population, underway: Underway, *_: object) -> bool:
            self.events.append(f"evolution {underway.generation}.{underway.steps + 1}")
            if self.interrupt_evolution_in == underway.generation:
                return False
            underway.steps += 1
            return True

        monkeypatch.setattr(driver, "sgd_step", sgd)
        monkeypatch.setattr(driver, "evolution_step", evolution)
        monkeypatch.setattr(driver, "measure_diversity", lambda *_: {})
        self.setting = Setting(
            recipe=settings,
            hyperparameters={},
            topology=cast(Any, Topology(world)),
            learner=cast(Any, Learner()),
            anchor=None,
            saving=cast(Any, self),
            report=lambda members, rows: self.events.append(f"report {members.generation}"),
            interruption=cast(Any, self),
            should_save=lambda: self.population.generation == self.save_in_generation,
        )

    def save(self, members: Population, history: History, *, must: bool, asked: bool) -> None:
        self.events.append(f"save {history.rows[-1].generation}{' must' * must}{' asked' * asked}")

    def save_underway(self, members: Population, history: History, underway: Underway) -> None:
        self.events.append(f"save {underway.generation} underway")

    def longest_seconds(self) -> float:
        return 0.0

    def keep_free(self, seconds: float) -> None:
        assert seconds == 0.0

    def requested(self) -> bool:
        return self.population.generation == self.stop_in_generation

    def run(self, underway: Underway | None = None) -> Underway | None:
        return evolve(self.population, self.history, self.setting, underway)


MakeLoop = Callable[..., Loop]


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> MakeLoop:
    """Return what makes a loop from the tables of a recipe."""

    def make(others: Sequence[tuple[bool, bool]] = (), **tables: Any) -> Loop:
        return Loop(monkeypatch, recipe(**tables), World(others))

    return make


def test_a_generation_is_an_sgd_step_evolution_steps_a_checkpoint_and_a_report(
    loop: MakeLoop,
) -> None:
    one = loop(generations=2, evolution={"steps": 2})
    assert one.run() is None
    assert one.events == [
        *("sgd 1", "evolution 1.1", "evolution 1.2", "save 1", "report 1"),
        *("sgd 2", "evolution 2.1", "evolution 2.2", "save 2 must", "report 2"),
    ]
    assert one.population.generation == 2
    assert [row.generation for row in one.history.rows] == [1, 2]
    for row in one.history.rows:
        assert set(row.seconds) == {"sgd", "idle", "evolution_rest", "diversity", "checkpoint"}
        assert all(value >= 0.0 for value in row.seconds.values())


def test_the_idle_time_is_what_groups_wait_for_the_slowest() -> None:
    records = [
        Individual(uid=n, fitness=1.0, seconds=s) for n, s in enumerate([3.0, 1.0, 2.0, 9.0])
    ]
    assert idle_seconds(records, {0: 0, 1: 1, 2: 1}, 3) == 3.0 - 6.0 / 3  # 3: by another job
    assert idle_seconds(records, {}, 3) == 0.0


@pytest.mark.parametrize("method", ["sgd-only", "population", "single"])
def test_the_baselines_have_no_evolution_step(loop: MakeLoop, method: str) -> None:
    one = loop(method=method, generations=2, single={"learning_rate": 0.1})
    assert one.run() is None
    assert not any(event.startswith("evolution") for event in one.events)
    assert all(row.evolution_seconds is None for row in one.history.rows)


def test_fine_tuning_is_one_more_generation_without_evolution(loop: MakeLoop) -> None:
    one = loop(generations=1, fine_tuning={"epochs": 3})
    assert one.run() is None
    assert one.events[3:] == ["report 1", "sgd 2", "save 2 must", "report 2"]


def test_a_rank_that_is_asked_to_stop_ends_the_run_at_a_checkpoint(loop: MakeLoop) -> None:
    one = loop(generations=5)
    one.stop_in_generation = 2
    assert one.run() is not None
    assert one.events[-2:] == ["save 2 must", "report 2"]
    one.stop_in_generation = 0
    assert one.run() is None, "and it goes on from there"
    assert [row.generation for row in one.history.rows] == [1, 2, 3, 4, 5]


def test_any_other_rank_can_be_the_one_that_is_asked_to_stop(loop: MakeLoop) -> None:
    one = loop(others=[(False, False), (True, False)], generations=5)
    assert one.run() is not None
    assert one.population.generation == 1


def test_any_rank_can_be_the_one_that_is_asked_to_save(loop: MakeLoop) -> None:
    one = loop(generations=3)
    one.save_in_generation = 2
    assert one.run() is None
    assert [e for e in one.events if "save" in e] == ["save 1", "save 2 asked", "save 3 must"]
    one = loop(others=[(False, True)], generations=2)
    assert one.run() is None
    assert "save 1 asked" in one.events


def test_a_generation_that_is_interrupted_is_saved_and_gone_on_with(loop: MakeLoop) -> None:
    one = loop(generations=3, evolution={"steps": 2})
    one.interrupt_sgd_in = 2
    made = one.run()
    assert made is not None
    assert made.generation == 2
    assert one.events[5:] == ["sgd 2", "save 2 underway"]
    assert one.population.generation == 1
    assert [row.generation for row in one.history.rows] == [1]
    one.interrupt_sgd_in, one.interrupt_evolution_in = 0, 2
    made = one.run(made)
    assert made is not None
    assert made.told() == "4 of 4 individuals trained"
    made.steps, made.scored = 1, individuals(1.0, 2.0)
    assert made.told() == "4 of 4 individuals trained, 1 evolution step done, 2 children scored"
    made.steps, made.scored = 0, []
    one.interrupt_evolution_in = 0
    assert one.run(made) is None
    assert one.events[-7:-5] == ["save 2", "report 2"]
    assert [row.generation for row in one.history.rows] == [1, 2, 3]


def test_a_request_to_stop_in_the_last_generation_changes_nothing(loop: MakeLoop) -> None:
    one = loop(generations=2)
    one.stop_in_generation = 2
    assert one.run() is None


def test_a_finished_population_is_left_alone(loop: MakeLoop) -> None:
    one = loop(generations=2)
    one.population.generation = 2
    assert one.run() is None
    assert one.events == []


def test_the_loop_ends_where_theorem_1_does_not_hold(
    loop: MakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = loop(generations=5)
    sgd_step = cast(Any, driver).sgd_step

    def worse(members: Population, underway: Underway, *rest: object) -> bool:
        sgd_step(members, underway, *rest)
        if underway.generation == 3:
            members.individuals = [
                msgspec.structs.replace(i, fitness=i.fitness + 1.0) for i in members.individuals
            ]
        return True

    monkeypatch.setattr(driver, "sgd_step", worse)
    with pytest.raises(RunError, match="Theorem 1 is violated in generation 3"):
        one.run()
    assert "save 2" in one.events
    assert "save 3" not in one.events


def test_the_share_of_offspring_in_the_elite_is_that_of_this_generation(
    loop: MakeLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = loop(generations=3)
    origin: Origin = "offspring"

    def give_birth(members: Population, underway: Underway, *_: object) -> bool:
        underway.steps, k = 1, underway.generation
        if k == 3:
            return True
        children = [
            Individual(uid=10 * k + n, fitness=0.5 / k + n, origin=origin, born=k, parents=(0, 1))
            for n in range(2)
        ]
        members.individuals = [*members.individuals[:3], children[0]]
        underway.offspring += children
        underway.selected += [i.uid for i in members.individuals]
        return True

    monkeypatch.setattr(driver, "evolution_step", give_birth)
    assert one.run() is None
    assert [row.elite_offspring_fraction for row in one.history.rows] == [0.5, 0.5, 0.0]
    # And each of them is remembered: what was selected with its birth, the others by their fitness.
    assert [b.uid for b in one.history.births] == [0, 1, 2, 10, 20]
    assert [b.parents for b in one.history.births[3:]] == [(0, 1), (0, 1)]
    assert [[(c.uid, c.selected) for c in row] for row in one.history.offspring] == [
        [(10, True), (11, False)],
        [(20, True), (21, False)],
        [],
    ]
    assert [[m.uid for m in row] for row in one.history.survivors] == [
        [0, 1, 2, 10],
        [0, 1, 2, 20],
        [0, 1, 2, 20],
    ]
    steps = [(s.generation, s.uid) for s in one.history.steps]
    assert steps == [(g, u) for g in (1, 2, 3) for u in (0, 1, 2, {1: 3, 2: 10, 3: 20}[g])]
