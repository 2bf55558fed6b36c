"""Imports go down only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from utils import ROOT

ALLOWED = {
    "utils.py": set(),
    "shapes": {"utils", "shapes"},
    "search": {"utils", "search"},
    "verifiers": {"utils", "verifiers", "shapes"},
    "pipelines": {"utils", "pipelines", "search.core", "search.resampling"},
    "experiment": {"utils", "pipelines", "verifiers", "search", "experiment"},
    "process_results.py": {"utils", "experiment"},
    "main.py": {"utils", "experiment"},
}
OURS = {"utils", "shapes", "search", "verifiers", "pipelines", "experiment", "main",
        "process_results", "benchmarks", "tests"}  # fmt: skip
HEAVY = {"pipelines": {"transformers"}, "search": {"diffusers", "transformers"},
         "verifiers": {"diffusers"}, "experiment": {"diffusers", "transformers"}}  # fmt: skip


def sources(part: str) -> list[Path]:
    path = ROOT / part
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: absolute imports only"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_go_down_only(part: str) -> None:
    for path in sources(part):
        for name in imported(path):
            ours = name.split(".")[0] in OURS
            allowed = any(name == a or name.startswith(a + ".") for a in ALLOWED[part])
            assert not ours or allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("part", HEAVY)
def test_heavy_libraries_stay_where_they_belong(part: str) -> None:
    for path in sources(part):
        used = {name.split(".")[0] for name in imported(path)}
        logging_only = path.name == "loading.py" and part == "pipelines"  # transformers' logger
        assert logging_only or not used & HEAVY[part], path
