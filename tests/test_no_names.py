"""No code asks a pipeline, a checkpoint or a family of models for its name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils import ROOT

FILES = sorted(
    p for part in ("pipelines", "experiment", "search") for p in (ROOT / part).rglob("*.py")
)
FAMILY = re.compile(
    r"flux|klein|sdxl|sd[-_.]?[123]|stable[-_. ]?diffusion|pixart|sana|qwen|z[-_ ]?image|ltx|\bwan"
    r"|\bdit\b|kandinsky|hunyuan|cogvideo|schnell|turbo|black-forest|img2img|inpaint",
    re.IGNORECASE,
)
BASES = {"DiffusionPipeline"}  # what every pipeline is
ASKED = {"__name__", "__qualname__", "_class_name", "_name_or_path", "name_or_path"}


def conditions(tree: ast.AST) -> Iterator[ast.AST]:
    """Every expression on which the way through the code depends."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
            yield node.test
        elif isinstance(node, ast.Match):
            yield node.subject
            yield from (case.pattern for case in node.cases)
        elif isinstance(node, ast.comprehension):
            yield from node.ifs
        elif isinstance(node, ast.Compare):
            yield node


def offences(source: str) -> list[str]:
    """What in the source decides by a name, line by line."""
    found = []
    for condition in conditions(ast.parse(source)):
        for node in ast.walk(condition):
            text = ""
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value if FAMILY.search(node.value) else ""
            elif isinstance(node, ast.Name | ast.Attribute):
                name = node.id if isinstance(node, ast.Name) else node.attr
                pipeline = name.endswith(("Pipeline", "Transformer2DModel")) and name not in BASES
                text = name if pipeline or name in ASKED else ""
            if text:
                found.append(f"line {getattr(node, 'lineno', 0)}: {text}")
    return sorted(set(found))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_decided_by_a_name(path: Path) -> None:
    assert offences(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pipeline_is_imported_by_name(path: Path) -> None:
    """What is not imported cannot be asked for by isinstance either."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffusers"):
            names = {alias.name for alias in node.names}
            assert {name for name in names if name.endswith("Pipeline")} <= BASES


@pytest.mark.parametrize(
    "source",
    [
        "if 'flux' in checkpoint: pass",
        "x = 1 if type(pipe).__name__ == 'Thing' else 2",
        "if isinstance(pipe, FluxPipeline): pass",
        "match name:\n    case 'stabilityai/sdxl-turbo': pass",
        "if index['_class_name'].startswith('LTX'): pass",
        "y = [p for p in pipes if p.config._name_or_path]",
        "while isinstance(model, SD3Transformer2DModel): pass",
    ],
)
def test_such_branches_are_found(source: str) -> None:
    assert offences(source)


def test_others_are_not() -> None:
    fine = "if hasattr(pipe, 'vae') and issubclass(found, DiffusionPipeline): raise E(x.__name__)"
    assert offences(fine) == []
