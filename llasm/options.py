"""A dataclass's fields as command-line options and YAML keys; their docstrings become the help."""

from __future__ import annotations

import json
from argparse import ArgumentError
from collections.abc import Callable
from importlib.resources import files
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from llasm.errors import LlasmError

_BOUNDS: dict[str, Callable[[float], bool]] = {
    "at least 1": lambda x: x >= 1,
    "at least 0": lambda x: x >= 0,
    "above 0": lambda x: x > 0,
    "between 0 and 1": lambda x: 0 <= x <= 1,
}


def check_numbers(settings: Any, bound: str, *names: str, where: str = "") -> None:
    """Raises LlasmError, naming the first of the fields (`name`, `nested.name`) that is out of bounds; None is not."""
    for name in names:
        value = attrgetter(name)(settings)
        if value is not None and not _BOUNDS[bound](value):
            raise LlasmError(f"{where}{name} is {value}; it must be {bound}")


def option_parser(settings: type, prog: str, description: str = "") -> Any:
    """A jsonargparse parser with one `--field` for each field, nested ones as `--field.name`."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(exit_on_error=False, prog=prog, description=description)
    parser.add_argument("--config", action="config", help="a YAML file of the fields below")
    parser.add_class_arguments(settings, None)
    return parser


def parse_options(parser: Any, argv: list[str], where: str | Path) -> dict[str, Any]:
    """Field values; an unknown key or a wrong type is a LlasmError that starts with `where`, or with the command line.

    `--on-error` is `--on_error`, a switch may stand alone: `--resume` is `--resume true`, and so may a single text for
    a list of them: `--data mine` is `--data '["mine"]'`.
    """
    fields, fault = _parsed(parser, _as_typed(parser, argv))
    if fault:
        config = [word for word in argv if word.startswith("--config=")]
        if config and _parsed(parser, config)[1] != fault:  # the file alone is right, or wrong in another way
            where = "command line"
        hint = '; a list is written ["…", "…"]' if "Expected a <class 'list'>" in fault else ""
        raise LlasmError(f"{where}: {fault}{hint}")
    return {name: value for name, value in vars(fields).items() if name != "config"}


def _parsed(parser: Any, argv: list[str]) -> tuple[Any, str]:
    """(fields, "") or (None, what is wrong)."""
    try:
        return parser.parse_args(argv), ""
    except (ArgumentError, UnicodeDecodeError) as error:
        return None, " ".join(str(error).split())


def _as_typed(parser: Any, argv: list[str]) -> list[str]:
    """YAML writes on_error; a hand would type --on-error, a switch without its value, one text without brackets."""
    hints = {option: getattr(a, "_typehint", None) for a in parser._actions for option in a.option_strings}
    switches = {option for option, hint in hints.items() if hint is bool}
    lists = {option for option, hint in hints.items() if _is_list_of_texts(hint) and not option.endswith("+")}
    words: list[str] = []
    for i, word in enumerate(argv):
        if words and words[-1] in lists:
            words.append(_as_list(word))
            continue
        key, equals, value = word.partition("=")
        if key.startswith("--"):
            key = "--" + key[2:].replace("-", "_")
            if key in switches and not equals and (i + 1 == len(argv) or argv[i + 1].startswith("--")):
                equals, value = "=", "true"
            if key in lists and equals:
                value = _as_list(value)
        words.append(key + equals + value)
    return words


def _is_list_of_texts(hint: Any) -> bool:
    return get_origin(hint) is list and (get_args(hint) == (str,) or get_origin(get_args(hint)[0]) is Literal)


def _as_list(value: str) -> str:
    return value if value.startswith("[") else json.dumps([value])


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
