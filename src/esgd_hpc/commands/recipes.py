"""`esgd recipes`: which recipes come with the package, and what each is for."""

import argparse


def execute(arguments: argparse.Namespace) -> int:
    """Print the names with the first comment line of each, and return 0."""
    from esgd_hpc.recipe_file import recipe_names, recipe_text

    names = recipe_names()
    width = max(map(len, names), default=0)
    for name in names:
        print(f"{name:<{width}}  {_purpose(recipe_text(name))}".rstrip())
    return 0


def _purpose(text: str) -> str:
    """Return the first comment line of a TOML text, without its mark."""
    comments = (line for line in text.splitlines() if line.startswith("#"))
    return next(comments, "").lstrip("#").strip()
