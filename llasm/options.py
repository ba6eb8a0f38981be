"""A dataclass's fields as command-line options and YAML keys; their docstrings become the help."""

from __future__ import annotations

from argparse import ArgumentError
from importlib.resources import files
from pathlib import Path
from typing import Any

from llasm.errors import LlasmError


def option_parser(settings: type, prog: str, description: str = "") -> Any:
    """A jsonargparse parser with one `--field` for each field, nested ones as `--field.name`."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False, prog=prog, description=description)
    parser.add_argument("--config", action="config", help="a YAML file of the fields below")
    parser.add_class_arguments(settings, None)
    return parser


def parse_options(parser: Any, argv: list[str], where: str | Path) -> dict[str, Any]:
    """Field values; an unknown key or a wrong type is a LlasmError that starts with `where`.

    `--on-error` is `--on_error`, and a switch may stand alone: `--resume` is `--resume true`.
    """
    try:
        fields = parser.parse_args(_as_typed(parser, argv))
    except (ArgumentError, UnicodeDecodeError) as error:
        raise LlasmError(f"{where}: {' '.join(str(error).split())}") from error
    return {name: value for name, value in vars(fields).items() if name != "config"}


def _as_typed(parser: Any, argv: list[str]) -> list[str]:
    """YAML writes on_error; a hand would type --on-error, and a switch without its value."""
    actions = [action for action in parser._actions if getattr(action, "_typehint", None) is bool]
    switches = {option for action in actions for option in action.option_strings}
    words = []
    for i, word in enumerate(argv):
        key, equals, value = word.partition("=")
        if key.startswith("--"):
            key = "--" + key[2:].replace("-", "_")
            if key in switches and not equals and (i + 1 == len(argv) or argv[i + 1].startswith("--")):
                equals, value = "=", "true"
        words.append(key + equals + value)
    return words


def recipe_names(room: str) -> list[str]:
    """Recipes that a room (`train`, `data_gen`) ships."""
    folder = files(f"llasm.{room}") / "recipes"
    return sorted(entry.name[:-5] for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def recipe_path(room: str, name: str) -> Path:
    """A shipped recipe's name or a path → the YAML file."""
    if Path(name).is_file():
        return Path(name)
    shipped = Path(str(files(f"llasm.{room}") / "recipes" / f"{name}.yaml"))
    if not shipped.is_file():
        raise LlasmError(f"unknown recipe {name!r}: shipped are {', '.join(recipe_names(room))}; a path works too")
    return shipped
