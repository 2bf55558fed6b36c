"""Configs and prompt files damaged in any way: refused in one sentence, or taken; nothing left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiment.config import parse_config
from main import main
from search import SEARCHES
from tests.fuzz import changed, command, damaged, json_bytes, often
from utils import ROOT
from verifiers import VERIFIERS

BUNDLED = [
    json.loads(path.read_text())
    for path in sorted((ROOT / "configs").glob("*.json"))
    if path.name != "schema.json"
]
COMPARISON = json.loads((ROOT / "configs/compare/quick.json").read_text())
PROMPTS = {
    ".txt": "a red circle\tcolors\nÄ\u2028 \U0001f984\n\n\tblank\nlast",
    ".csv": 'Prompt,category\n"a ""red"" circle,\nleft",colors\na blue square,\n',
    ".tsv": 'prompt\tcategory\n"a red circle\tcolors\na blue square\n',
    ".jsonl": '{"prompt": "a red circle", "category": 3}\n{"prompt": "two"}\n',
    ".json": '{"1": {"prompt": "a red circle"}, "2": {"prompt": "two", "tags": [1]}}',
}
SMALL = {
    "pretrained_model_name_or_path": "shapes/models/shapes-flux",
    "verifier_args": {"name": "contrast"},
    "search_args": {"search_rounds": 1},
    "budget": {"nfe": 40},
    "pipeline_call_args": {"num_inference_steps": 2},
    "num_prompts": "all",
}

# Every method with every option that it has, and every verifier.
WHOLE = [
    parse_config({**SMALL, "search_args": {"search_method": name}}).resolved()
    for name in SEARCHES
    if name != "ascent"  # which needs another verifier
]
JUDGED = [{**SMALL, "verifier_args": {"name": name}} for name in VERIFIERS if name != "ensemble"]
ENSEMBLE = {"name": "ensemble", "combine": "rank", "verifiers": [{"name": "contrast", "weight": 1}]}
CONFIGS = [*BUNDLED, *WHOLE, *JUDGED, {**SMALL, "verifier_args": ENSEMBLE}]


class Reached(Exception):
    """All was checked: weights would be loaded now."""


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def loads(*_: Any, **__: Any) -> None:
        raise Reached

    monkeypatch.setattr("experiment.runner.load_pipeline", loads)
    yield


def refused_or_taken(folder: Path, *argv: str) -> None:
    """A command that fits, or that is refused in words, and leaves nothing behind."""
    before = sorted(folder.rglob("*"))
    root = folder / "out"
    try:
        ended = command(main, *argv, f"--output_dir={root}")
    except Reached:
        ended = None
    if ended is not None:
        assert ended.code in (0, 2), ended
        assert "Traceback" not in ended.err
        assert (ended.code == 2) == (ended.out == ""), ended
        assert ended.code == 0 or ended.err.strip(), "refused without a word"
    assert sorted(folder.rglob("*")) == before


def configs_are_refused_or_taken(folder: Path, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(("changed", "changed", "damaged", "comparison")))
    trees = [COMPARISON] if kind == "comparison" else CONFIGS
    content = json_bytes(data.draw(changed(trees)))
    if kind == "damaged":
        content = data.draw(damaged(content))
    path = folder / "config.json"
    path.write_bytes(content)
    flag = "--compare" if kind == "comparison" else "--pipeline_config_path"
    dry = kind == "comparison" or data.draw(st.booleans())
    refused_or_taken(folder, f"{flag}={path}", *(["--dry_run"] if dry else []))


def prompts_are_refused_or_taken(folder: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(sorted(PROMPTS)))
    path = folder / f"prompts{suffix}"
    path.write_bytes(data.draw(damaged(PROMPTS[suffix].encode())))
    column = data.draw(st.sampled_from((None, "prompt", "Prompt", "category", "")))
    (folder / "config.json").write_bytes(
        json_bytes({**SMALL, "prompts": str(path), "prompts_column": column})
    )
    refused_or_taken(folder, f"--pipeline_config_path={folder / 'config.json'}", "--dry_run")
    path.unlink()


def cleared(folder: Path) -> Path:
    shutil.rmtree(folder)
    folder.mkdir()
    return folder


@often(150, derandomize=True)
@given(data=st.data())
def test_a_damaged_config_is_refused_or_taken(tmp_path: Path, data: st.DataObject) -> None:
    configs_are_refused_or_taken(cleared(tmp_path), data)


@often(100, derandomize=True)
@given(data=st.data())
def test_a_damaged_prompt_file_is_refused_or_taken(tmp_path: Path, data: st.DataObject) -> None:
    prompts_are_refused_or_taken(cleared(tmp_path), data)


@pytest.mark.fuzz
@often(4000, derandomize=False)
@given(data=st.data())
def test_thousands_of_damaged_configs(tmp_path: Path, data: st.DataObject) -> None:
    configs_are_refused_or_taken(cleared(tmp_path), data)


@pytest.mark.fuzz
@often(1000, derandomize=False)
@given(data=st.data())
def test_a_thousand_damaged_prompt_files(tmp_path: Path, data: st.DataObject) -> None:
    prompts_are_refused_or_taken(cleared(tmp_path), data)
