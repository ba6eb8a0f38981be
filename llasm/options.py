"""A dataclass's fields as command-line options and YAML keys; their docstrings become the help."""

from __future__ import annotations

from argparse import ArgumentError
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
    """Field values; an unknown key or a wrong type is a LlasmError that starts with `where`."""
    try:
        fields = parser.parse_args(argv)
    except (ArgumentError, UnicodeDecodeError) as error:
        raise LlasmError(f"{where}: {' '.join(str(error).split())}") from error
    return {name: value for name, value in vars(fields).items() if name != "config"}
