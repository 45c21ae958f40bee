"""How a TOML file and `--set` become one checked recipe, or one message that says what is wrong."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from esgd_hpc.config import Choice, Drawn, Range, Recipe, Table, short
from esgd_hpc.errors import InputError
from esgd_hpc.recipe_checks import check_bounds, check_drawn, check_together, is_number


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("esgd_hpc") / "recipes"
    return sorted(
        f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml")
    )


def recipe_text(name_or_path: str) -> str:
    """Return the TOML text of a packaged recipe or of a file."""
    if name_or_path in recipe_names():
        return (resources.files("esgd_hpc") / "recipes" / f"{name_or_path}.toml").read_text("utf-8")
    path = Path(name_or_path)
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise InputError(
            f"recipe {name_or_path}: no such file, and no recipe of this name"
            f"{_nearest(name_or_path, recipe_names())}; `esgd recipes` lists the names"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"recipe {name_or_path}: cannot be read as text: {error}") from None


def load_recipe(name_or_path: str, overrides: Iterable[str] = ()) -> Recipe:
    """Return the checked recipe of a packaged name or a TOML file, with KEY=VALUE overrides.

    A file may extend another, `extends = "cifar10"`. Raises InputError that names the key, its
    value and the remedy.
    """
    data = _load(name_or_path, ())
    for override in overrides:
        _apply_override(data, override)
    return recipe_from(data, source=f"recipe {name_or_path}")


EXTENDS = "extends"
"""Key of a recipe file that names another one, whose keys hold where this one has none."""


def _load(name_or_path: str, around: tuple[str, ...]) -> dict[str, Any]:
    """Return what a recipe file holds together with what it extends."""
    if name_or_path in around:
        chain = " extends ".join([*around, name_or_path])
        raise InputError(f"recipe {around[0]}: {chain}: recipes extend each other in a circle")
    text = recipe_text(name_or_path)
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"recipe {name_or_path}: not valid TOML: {error}") from None
    base = data.pop(EXTENDS, None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise InputError(
            f"recipe {name_or_path}: {EXTENDS} = {short(base)}: expected a recipe's name or file"
        )
    if base not in recipe_names() and name_or_path not in recipe_names():
        base = str(Path(name_or_path).parent / base)  # a file beside this one
    return _merged(_load(base, (*around, name_or_path)), data)


def _merged(base: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the keys of `data`; tables are merged, all else is replaced."""
    merged = dict(base)
    for key, value in data.items():
        old = base.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return merged


def recipe_from(data: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """Return the checked recipe of nested mappings as a TOML file holds them."""
    _refuse_unknown_keys(data, Recipe, "", source)
    _check_hyperparameters(data, source)
    try:
        recipe = msgspec.convert(data, Recipe, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise InputError(f"{source}: {_with_key(str(error), data)}") from None
    check_bounds(recipe, source)
    check_together(recipe, source)
    return recipe


def _decode(kind: Any, value: Any) -> Any:
    if kind is Range:
        if is_number(value):
            return Range(value)
        if isinstance(value, list) and len(value) == 2 and all(map(is_number, value)):
            return Range(*value)
        raise ValueError("expected a number or [low, high]")
    if kind is Drawn:
        if isinstance(value, Mapping):
            if set(value) != {"choice"} or not isinstance(value["choice"], list):
                raise ValueError("expected a number, [low, high] or { choice = [...] }")
            return Choice(value["choice"])
        if isinstance(value, str | bool):
            return Choice([value])
        return _decode(Range, value)
    raise TypeError(f"no reader for {kind}")


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"--set {override}: expected KEY=VALUE, such as --set sgd.epochs=2")
    try:
        (value,) = tomllib.loads(f"value = {text}").values()
    except (ValueError, RecursionError):
        raise InputError(
            f"--set {short(override)}: {short(text)} is not a TOML value;"
            f""" text needs quotes that the shell keeps: --set {key}='"{text.strip()}"'"""
        ) from None
    *parents, last = key.split(".")
    place: Any = data
    for part in parents:
        if isinstance(place, list):
            place = _item(place, part, override)
        elif isinstance(place, dict):
            place = place.setdefault(part, {})
    if isinstance(place, list):
        _item(place, last, override)
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise InputError(f"--set {override}: {'.'.join(parents)} is a value, not a table")


def _item(place: list[Any], part: str, override: str) -> Any:
    if not part.isdecimal() or int(part) >= len(place):
        raise InputError(
            f"--set {override}: {part} is not one of the {len(place)} entries,"
            " which are numbered from 0"
        )
    return place[int(part)]


def _refuse_unknown_keys(data: Any, table: type[Table], prefix: str, source: str) -> None:
    """Name the nearest known key; msgspec alone would only say that a field is unknown."""
    if not isinstance(data, Mapping):
        return
    hints = get_type_hints(table)
    for name, value in data.items():
        key = f"{prefix}{name}"
        if name not in hints:
            raise InputError(
                f"{source}: unknown key {key} = {short(value)}{_nearest(name, hints, prefix)}"
            )
        kind = hints[name]
        if isinstance(kind, type) and issubclass(kind, Table):
            _refuse_unknown_keys(value, kind, f"{key}.", source)
        elif get_origin(kind) is tuple and isinstance(value, list):
            for index, item in enumerate(value):
                _refuse_unknown_keys(item, get_args(kind)[0], f"{key}.{index}.", source)


def _check_hyperparameters(data: Mapping[str, Any], source: str) -> None:
    """Name the hyper-parameter that cannot be drawn; msgspec would only name their table."""
    sgd = data.get("sgd")
    table = sgd.get("hyperparameters") if isinstance(sgd, Mapping) else None
    for name, value in table.items() if isinstance(table, Mapping) else ():
        key = f"sgd.hyperparameters.{name}"
        try:
            drawn = _decode(Drawn, value)
        except ValueError as error:
            raise InputError(f"{source}: {key} = {short(value)}: {error}") from None
        check_drawn(name, drawn, f"{source}: {key}")


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{found[0]}?" if found else ""


def _with_key(message: str, data: Any) -> str:
    """Turn msgspec's "expected ... - at `$.a.b[0].c`" into "a.b.0.c = value: expected ..."."""
    what, _, path = message.partition(" - at `$")
    what = what.replace("`object`", "a table").replace("array", "list").replace("`", "")
    if not path:
        return message
    key = path.rstrip("`").replace("[...]", "").strip(".").replace("[", ".").replace("]", "")
    value: Any = data
    for part in key.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return f"{key}: {what}"
    hint = _expected_values(key)
    return f"{key} = {short(value)}: {what[0].lower()}{what[1:]}{hint}"


def _expected_values(key: str) -> str:
    kind: Any = Recipe
    for part in key.split("."):
        if part.isdecimal():
            kind = get_args(kind)[0] if get_args(kind) else None
        else:
            kind = get_type_hints(kind).get(part) if isinstance(kind, type) else None
        if kind is None:
            return ""
    if get_origin(kind) is Literal:
        return f"; one of {', '.join(get_args(kind))}"
    return ""
