"""The rules of the house that a test can hold."""

import ast
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STAIRS = ["errors", "config", "data", "pretrain", "finetune", "cluster", "__main__"]
METHODS = [
    "pretrain/controls",
    "pretrain/encoders",
    "pretrain/first_stages",
    "pretrain/likenesses",
    "pretrain/models",
    "pretrain/objectives",
    "pretrain/visuals",
]
METHODS += ["finetune/adapters", "finetune/heads", "finetune/export"]
FORBIDDEN = {
    *("torch.load", "pickle.load", "pickle.loads", "yaml.load", "eval", "exec", "os.system"),
    "torch.export.load",
}
FORBIDDEN_FLAGS = {("shell", True), ("trust_remote_code", True), ("weights_only", False)}


def tracked(pattern: str) -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in found.stdout.splitlines() if (ROOT / line).exists()]


CODE = [
    path
    for path in tracked("*.py")
    if path.relative_to(ROOT).parts[0] not in ("tests", "docs", "benchmarks", "scripts")
]


def imports(path: Path) -> Iterator[str]:
    """Absolute dotted names that a file imports, ours as `diptych.…`, inside functions too."""
    here = ("diptych", *path.relative_to(ROOT).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: len(here) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def stair(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "diptych" and len(parts) > 1 and parts[1] in STAIRS else None


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_keeps_the_house(path: Path) -> None:
    place = path.relative_to(ROOT)
    mine = place.parts[0].removesuffix(".py")
    if mine != "__init__":
        above = STAIRS[STAIRS.index(mine) + 1 :]
        wrong = [name for name in imports(path) if stair(name) in above]
        assert not wrong, f"{place} imports from a higher step: {wrong}"
    if mine != "cluster":
        assert not [n for n in imports(path) if n.split(".")[0] in ("ray", "deepspeed")]
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in ("utils", "util", "helpers", "misc", "common")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{place}: {node.name} is too long"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN, f"{place}:{node.lineno}"
            for word in node.keywords:
                flag = getattr(word.value, "value", None)
                assert (word.arg, flag) not in FORBIDDEN_FLAGS, f"{place}:{node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(line, ast.Pass) for line in node.body)
            assert node.type is not None and not silent, f"{place}:{node.lineno} swallows errors"


def test_the_root_is_free_of_other_code() -> None:
    files = {path.name for path in CODE if path.parent == ROOT}
    assert files == {"__init__.py", "__main__.py", "config.py", "errors.py"}
    assert not (ROOT / "tests" / "__init__.py").exists()


def test_every_folder_of_code_is_packaged() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for path in CODE}
    named = {".".join(("diptych", *folder.parts)) for folder in folders}
    assert set(listed) == named
    assert listed == sorted(listed)


@pytest.mark.parametrize("folder", METHODS)
def test_a_table_of_contents_is_complete_and_sorted(folder: str) -> None:
    home = ROOT / folder
    tree = ast.parse((home / "__init__.py").read_text())
    named: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            named += [node.module] if node.module else [alias.name for alias in node.names]
    files = sorted(path.stem for path in home.glob("*.py") if path.stem != "__init__")
    assert named == files
    assert all(isinstance(node, ast.ImportFrom | ast.Expr) for node in tree.body)


@pytest.mark.parametrize("folder", METHODS)
def test_methods_import_nothing_from_their_siblings(folder: str) -> None:
    home = "diptych." + folder.replace("/", ".") + "."
    for path in (ROOT / folder).glob("*.py"):
        if path.stem != "__init__":
            assert not [name for name in imports(path) if name.startswith(home)], path
