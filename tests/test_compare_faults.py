"""Comparisons that are cut short, crowded or out of room, on a pipeline that costs nothing."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from experiment.compare import compare, prepare
from experiment.compare_config import CompareConfig, load_compare_config
from experiment.lock import locked
from experiment.stops import Stopped
from main import main
from tests.interrupted import Blinking, Counting, Killed, content
from tests.still_worlds import PROMPTS, still_config
from tests.test_compare import winners
from utils import ROOT

# They hold or show seconds, or are the machine's.
TIMED = ("winners.jsonl", "table.csv", "table.md", "curves.png", "manifest.json")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two methods over two prompts, whose judge sees every winner."""
    tmp_path = tmp_path_factory.mktemp("comparison")
    counted = {"name": "tests.interrupted:Blinking"}
    own = still_config(
        tmp_path / "world",
        budget={},
        search_args={"search_method": "random"},
        verifier_args=counted,
        judges=[{**counted, "sign": -1.0}],
    )
    (tmp_path / "own.json").write_text(json.dumps(own))
    whole = {
        "name": "still",
        "pipeline_config": str(tmp_path / "own.json"),
        "methods": {
            "random": {"search_method": "random"},
            "zero-order": {"search_method": "zero-order", "on_reject": "resample"},
        },
        "budgets": [8, 20],
        "ceilings": [],
    }
    (tmp_path / "compare.json").write_text(json.dumps(whole))
    return tmp_path / "compare.json"


def loaded(path: Path, **changes: Any) -> CompareConfig:
    return load_compare_config(str(path), changes)


def left(root: Path) -> dict[str, Any]:
    """All that a comparison leaves, but for seconds."""
    kept = {name: value for name, value in content(root).items() if not name.endswith(TIMED)}
    return {**kept, "winners": winners(root)}


@dataclass(frozen=True)
class Whole:
    """A comparison that nothing befell: what it left, and what it asked."""

    left: dict[str, Any]
    calls: int
    images: int


@pytest.fixture(scope="module")
def whole(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    torch.set_num_threads(1)  # as in every test: another number rounds differently
    root = tmp_path_factory.mktemp("whole")
    Counting.begin()
    assert compare(loaded(path), str(root)).whole
    return Whole(left(root), Counting.calls, Counting.images)


@pytest.mark.slow
def test_no_judge_is_asked_twice_wherever_a_comparison_is_cut(
    path: Path, whole: Whole, tmp_path: Path
) -> None:
    for at in (1, whole.calls // 2, whole.calls - 1):  # the last in a judge's own call
        root = tmp_path / f"cut{at}"
        Counting.begin(at)
        with pytest.raises(Killed):
            compare(loaded(path), str(root))
        seen = Counting.images
        Counting.begin()
        assert compare(loaded(path), str(root)).whole
        assert left(root) == whole.left
        assert seen + Counting.images == whole.images  # the call that ended it was not answered


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, -1])  # in a verifier's first call, and in a judge's last
def test_a_search_that_fails_costs_no_other_and_is_tried_again(
    at: int, path: Path, whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--compare={path}", f"--output_dir={tmp_path}"]
    Counting.begin(at % whole.calls, ZeroDivisionError)
    assert main(flags) == 3
    asked = Counting.images
    method, index = {0: ("random", 0), -1: ("zero-order", 1)}[at]
    told = capsys.readouterr().out
    assert "1 search failed; the same command tries again:\n" in told
    assert f"prompt {index + 1}        {method} " in told
    folder = tmp_path / "compare" / "still" / method / "nfe20_s0"
    details = f"(details: {folder / 'state' / f'prompt{index}.failed.txt'})"
    assert f"failed: ZeroDivisionError: the grader fell over {details}" in told
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["prompts"][index]["failed"].startswith("ZeroDivisionError")
    assert "Traceback" in (folder / "state" / f"prompt{index}.failed.txt").read_text()
    assert len(winners(tmp_path)) == 3
    Counting.begin()
    assert main(flags) == 0
    assert left(tmp_path) == whole.left
    assert asked + Counting.images == whole.images  # what was answered is not asked again


def test_an_outage_is_no_result(
    path: Path,
    whole: Whole,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Blinking, "unseen", ((PROMPTS[0], 1.0),))
    assert compare(loaded(path), str(tmp_path)).failed == 2
    told = capsys.readouterr().out
    assert "2 searches failed" in told and "no finished image has a score" in told
    assert {line["prompt_index"] for line in winners(tmp_path)} == {1}
    monkeypatch.setattr(Blinking, "unseen", ())
    assert compare(loaded(path), str(tmp_path)).whole
    assert left(tmp_path) == whole.left


def test_a_judge_that_falls_silent_stops_the_comparison_and_is_asked_again(
    path: Path, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiment.stops.UNSCORED_IN_A_ROW", 1)
    monkeypatch.setattr(Blinking, "unseen", [(PROMPTS[1], -1.0)])
    with pytest.raises(Stopped, match="1 images in a row got no score from the judge 'brightness"):
        compare(loaded(path), str(tmp_path))
    assert {line["prompt_index"] for line in winners(tmp_path)} == {0}
    monkeypatch.setattr(Blinking, "unseen", ())
    Counting.begin()
    assert compare(loaded(path), str(tmp_path)).whole
    assert left(tmp_path) == whole.left


def test_silence_and_failures_are_counted_over_all_searches(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [f"--compare={path}", f"--output_dir={tmp_path}", "--set=seeds=[0,1]"]
    broken = '--set=verifier_args={"name": "tests.interrupted:Broken"}'
    assert main([*flags, broken, "--set=name=broken"]) == 4
    told = capsys.readouterr()
    assert told.out.count("failed: ZeroDivisionError") == 5
    assert "5 prompts in a row failed, the last one: ZeroDivision" in told.err
    assert "The same command goes on." in told.err
    assert main([*flags, broken, "--set=name=broken"]) == 3  # prompts that failed before count not
    capsys.readouterr()
    monkeypatch.setattr("experiment.stops.UNSCORED_IN_A_ROW", 13)  # a search shows 5
    monkeypatch.setattr(Blinking, "unseen", [(prompt, 1.0) for prompt in PROMPTS])
    assert main(flags) == 4
    assert "13 images in a row got no score, the last one because: 503" in capsys.readouterr().err


def changed(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_damaged_or_foreign_results_are_gone_on_with_or_refused_in_words(
    path: Path, whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--compare={path}", f"--output_dir={tmp_path}"]

    def refused(*more: str) -> str:
        assert main([*flags, *more]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    assert main(flags) == 0
    folder = tmp_path / "compare" / "still" / "random" / "nfe20_s0"
    lines, config, world = (folder / n for n in ("winners.jsonl", "config.json", "manifest.json"))
    before = {each: each.read_bytes() for each in (lines, config, world)}

    assert "other judges" in refused("--set=judges=[]")
    assert "other budgets" in refused("--set=budgets=[8,12,20]")
    lines.write_bytes(before[lines].replace(b": 0.", b": 1.", 1))
    assert f"Line 1 of {lines} is damaged" in refused()
    plain = [json.loads(line) for line in before[lines].splitlines()]
    bare = [{k: v for k, v in line.items() if k not in ("format", "crc32")} for line in plain]
    lines.write_text("".join(f"{json.dumps(line)}\n" for line in bare))  # by earlier versions
    assert prepare(loaded(path), str(tmp_path)).cells[0].done().keys() == {0, 1}
    bare[1]["winners"] = 7
    lines.write_text("".join(f"{json.dumps(line)}\n" for line in bare))
    assert f"Line 2 of {lines} is damaged" in refused()
    lines.write_bytes(before[lines])
    config.write_text("{")
    assert f"{config} is not JSON" in refused()
    config.unlink()
    assert f"{config} is missing: restore it, or move {folder} away" in refused()
    config.write_bytes(before[config])

    lines.write_bytes(before[lines][:-20])  # as by a torn copy: that prompt is searched for anew
    for key in ("weights", "rubrics"):
        changed(world, **{key: "others"})
        assert f"begun with other {key}" in refused()
        world.write_bytes(before[world])
    for each in folder.parent.parent.glob("*/*/manifest.json"):
        changed(each, packages={}, device="abacus")
    capsys.readouterr()
    assert main(flags) == 0
    said = "Other device, packages than before: images may differ in their last bits.\n"
    assert capsys.readouterr().out.count(said) == 1
    assert left(tmp_path) == whole.left


def test_a_second_process_is_refused_on_a_comparison(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "o" / "compare" / "still"
    folder.mkdir(parents=True)
    with locked(folder):
        assert main([f"--compare={path}", f"--output_dir={tmp_path / 'o'}"]) == 2
    said = capsys.readouterr().err
    assert f"Process {os.getpid()} on " in said and f"is working in {folder}" in said


@pytest.mark.slow
def test_a_full_disk_ends_a_comparison_in_a_sentence(
    path: Path, whole: Whole, tmp_path: Path
) -> None:
    """No file may grow beyond a few hundred bytes."""

    def cramped() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    argv = [sys.executable, "main.py", f"--compare={path}", f"--output_dir={tmp_path / 'o'}"]
    how: dict[str, Any] = {"cwd": ROOT, "capture_output": True, "text": True}
    ended = subprocess.run(argv, preexec_fn=cramped, check=False, **how)
    assert ended.returncode == 4, ended
    assert "The disk is full: make room, and the same command goes on." in ended.stderr
    assert "Traceback" not in ended.stderr
    Counting.begin()
    assert compare(loaded(path), str(tmp_path / "o")).whole
    assert left(tmp_path / "o") == whole.left
