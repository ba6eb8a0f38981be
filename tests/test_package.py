"""The package as a whole: which way imports point, what the wheel holds, whether the recipes parse."""

from __future__ import annotations

import ast
import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("data_gen", "train", "evals", "serve")
# It loads a room inside the function that needs it; nothing else in llasm/ names one.
LAZY = {ROOT / "llasm" / "cli.py"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """Name under which an installed llasm imports the file: train/x.py → llasm.train.x."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in ROOMS:
        parts.insert(0, "llasm")
    return ".".join(parts)


def imported(node: ast.AST, module: str) -> list[str]:
    """Absolute names that one node imports; relative ones are resolved against `module`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            # `a.b.c` sits in package `a.b`, and so does `a.b.__init__`: drop one part a level
            package = module.split(".")[: -node.level]
            base = ".".join([*package, base] if base else package)
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            return [node.args[0].value]
    return []


def imports_of(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Each import of a file: absolute name, line, whether it runs inside a function."""
    module = module_name(path)
    stack: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text(encoding="utf-8")), False)]
    while stack:
        node, in_function = stack.pop()
        for name in imported(node, module):
            yield name, getattr(node, "lineno", 0), in_function
        inside = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        stack.extend((child, inside) for child in ast.iter_child_nodes(node))


def room_of(name: str) -> str | None:
    """The room that an absolute import reaches, if it reaches one."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "llasm" and parts[1] in ROOMS else None


def test_the_model_imports_no_room() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sources("llasm")
        for name, line, in_function in imports_of(path)
        if room_of(name) and not (path in LAZY and in_function)
    ]
    assert wrong == []


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_do_not_import_one_another(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sources(room)
        for name, line, _ in imports_of(path)
        if room_of(name) not in (None, room)
    ]
    assert wrong == []


def test_rooms_are_imported_by_their_installed_name() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}, say llasm.{name}"
        for path in sources("llasm", *ROOMS, "tests", "benchmarks", "examples")
        for name, line, _ in imports_of(path)
        if name.split(".")[0] in ROOMS
    ]
    assert wrong == []


def test_imports_are_resolved() -> None:
    """The three tests above pass on an empty list: check that the reader sees what it must see."""

    def names(code: str, module: str) -> list[str]:
        return [name for node in ast.walk(ast.parse(code)) for name in imported(node, module)]

    assert names("import llasm.train.x", "llasm.chat") == ["llasm.train.x"]
    assert names("from llasm import train", "llasm.chat") == ["llasm.train"]
    assert names("from . import train", "llasm.chat") == ["llasm.train"]
    assert names("from ..evals.score import f", "llasm.train.x") == ["llasm.evals.score.f"]
    assert names("from .x import f", "llasm.train.__init__") == ["llasm.train.x.f"]
    assert names("importlib.import_module('llasm.serve')", "llasm.chat") == ["llasm.serve"]
    assert [room_of(name) for name in ("llasm.train.x", "llasm.chat", "torch")] == ["train", None, None]


@pytest.mark.parametrize("script", sorted((ROOT / "train").glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_sound_and_name_recipes_that_exist(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    used = re.findall(r'llasm" (train|data build) (\w+)', script.read_text(encoding="utf-8"))
    rooms = {"train": ROOT / "train", "data build": ROOT / "data_gen"}
    assert used and all((rooms[verb] / "recipes" / f"{name}.yaml").is_file() for verb, name in used)


def test_recipes_parse() -> None:
    for path in sorted((ROOT / "train" / "recipes").glob("*.yaml")):
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy: an old build/ adds nothing to it, and the checkout stays clean."""
    work = tmp_path_factory.mktemp("wheel")
    copy = work / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    for name in ("llasm", *ROOMS):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(work), str(copy)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = work.glob("*.whl")
    return zipfile.ZipFile(path)


def test_wheel_has_one_top_level_name(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"llasm"}
    assert len(tops) == 2, tops


def test_wheel_holds_every_source_and_data_file(wheel: zipfile.ZipFile) -> None:
    def in_wheel(path: Path) -> str:
        name = path.relative_to(ROOT).as_posix()
        return name if name.startswith("llasm/") else f"llasm/{name}"

    files = sources("llasm", *ROOMS)
    files += (ROOT / "train" / "recipes").glob("*.yaml")
    files += (ROOT / "train" / "zero").glob("*.json")
    files += (ROOT / "serve" / "page").glob("*")
    files += (path for path in (ROOT / "llasm" / "default").glob("*") if path.suffix)
    missing = sorted({in_wheel(path) for path in files if path.is_file()} - set(wheel.namelist()))
    assert missing == [], "list the package or the pattern in pyproject.toml"


def test_wheel_declares_the_command_and_the_voice(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    points = configparser.ConfigParser()
    points.read_string(wheel.read(name).decode())
    assert dict(points["console_scripts"]) == {"llasm": "llasm.cli:main"}
    assert points["llasm.tts"]["hibari"] == "llasm.tts.hibari:HibariEngine"
    for target in ("llasm.cli:main", "llasm.tts.hibari:HibariEngine"):
        assert target.split(":")[0].replace(".", "/") + ".py" in wheel.namelist()
