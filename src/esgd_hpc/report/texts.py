"""How numbers, individuals and their training are told in words."""

import math
from collections.abc import Iterable

from esgd_hpc.history import Birth, SgdStep
from esgd_hpc.population import Draw, Individual

OPTIMIZER_NAMES = {"none": "untrained", "sgd": "SGD", "adam": "Adam"}

METHOD_NAMES = {
    "single": "single baseline",
    "population": "population baseline",
    "sgd-only": "ESGD w/o evolution",
    "esgd": "ESGD",
    "esgd-anchor": "ESGD with anchors",
}
"""What Table 1 of the paper calls the methods, in its order."""


def fitness_text(value: float) -> str:
    """Return a fitness in six digits."""
    return f"{value:.6g}" if math.isfinite(value) else "+inf"


def seconds_text(seconds: float) -> str:
    """Return a duration in its two largest units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def draw_text(draw: Draw) -> str:
    """Return the hyper-parameters of one SGD step."""
    parts = [f"learning rate {draw.learning_rate:.3g}"]
    if draw.momentum:
        parts.append(f"{'Nesterov ' if draw.nesterov else ''}momentum {draw.momentum:.3g}")
    if draw.weight_decay:
        parts.append(f"weight decay {draw.weight_decay:.3g}")
    parts.append(f"batch size {draw.batch_size}")
    parts += [f"{name} {_value(value)}" for name, value in sorted(draw.hyperparameters.items())]
    return ", ".join(parts)


def _value(value: float | int | str | bool) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def step_text(step: SgdStep) -> str:
    """Return one SGD step in a line."""
    change = f"{fitness_text(step.fitness_before)} → {fitness_text(step.fitness)}"
    if step.back_offs:
        change += f", {step.back_offs} of {step.epochs} epochs undone"
    failure = f", {step.failure}" if step.failure else ""
    return (
        f"generation {step.generation}: {OPTIMIZER_NAMES[step.draw.optimizer]},"
        f" {draw_text(step.draw)}; fitness {change}{failure}"
    )


def birth_text(birth: Birth | None) -> str:
    """Return how an individual came into being."""
    if birth is None:
        return "its birth is not recorded (an anchor, or from before the record)"
    fitness = f"fitness at birth {fitness_text(birth.fitness)}"
    if birth.origin == "unknown":
        return f"born in generation {birth.born}, before the record"
    if birth.origin == "initial":
        return f"of the initial population, {fitness}"
    if birth.origin == "anchor":
        return f"copy of the anchor in generation {birth.born}, {fitness}"
    return (
        f"child of {listed(birth.parents)} in generation {birth.born},"
        f" noise {birth.sigma:.3g}, {fitness}"
    )


def maker_text(individual: Individual) -> tuple[str, str]:
    """Return what made the weights of an individual as they are, in a word and in detail."""
    if individual.draw is not None:
        return OPTIMIZER_NAMES[individual.draw.optimizer], draw_text(individual.draw)
    if individual.origin == "offspring":
        return "Evolution", (
            f"child of {listed(individual.parents)} in generation {individual.born},"
            f" noise {individual.sigma:.3g}, not trained since"
        )
    if individual.origin == "anchor":
        return "Anchor", "the given model, not trained since"
    return "Start", "of the initial population, not trained yet"


def listed(things: Iterable[object]) -> str:
    """Return "3 and 5", "3, 5 and 7"."""
    texts = list(map(str, things))
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if texts[1:] else texts)


def counted(number: int, what: str) -> str:
    """Return a number with what it counts."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
