"""What a recipe as a checkpoint stores it says; keys may be absent, and of any type."""

import json
from collections.abc import Iterator, Mapping
from typing import Any


def setting(recipe: Mapping[str, Any], key: str) -> Any:
    """Return what a recipe has at a dotted key, None where it is absent."""
    value: Any = recipe
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def last_generation(recipe: Mapping[str, Any]) -> int | None:
    """Return the number of the generation that ends the run; fine-tuning is one more."""
    generations = setting(recipe, "generations")
    if not isinstance(generations, int):
        return None
    return generations + (1 if setting(recipe, "fine_tuning.epochs") else 0)


def fitness_name(recipe: Mapping[str, Any]) -> str:
    """Return what the fitness of a run is."""
    data = setting(recipe, "fitness.data")
    return f"loss on the {data} data" if data in ("training", "validation") else "loss"


def recipe_items(recipe: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every key of a recipe as `--set` names it, with its value as JSON."""
    for name, value in recipe.items():
        if isinstance(value, Mapping):
            yield from recipe_items(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            for place, item in enumerate(value):
                yield from recipe_items(item, f"{prefix}{name}[{place}].")
        else:
            yield f"{prefix}{name}", json.dumps(value, ensure_ascii=False)


def has_evolution(recipe: Mapping[str, Any]) -> bool:
    """Tell whether the method of a recipe makes children."""
    return bool(setting(recipe, "method") == "esgd")
