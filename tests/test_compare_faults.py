"""Comparisons that are cut short, crowded or out of room, on a pipeline that costs nothing."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiment.compare import compare
from experiment.compare_config import CompareConfig, load_compare_config
from experiment.lock import locked
from main import main
from tests.interrupted import Counting, Killed
from tests.still_worlds import still_config
from tests.test_compare import winners
from utils import ROOT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A comparison of two methods over two prompts, whose judge sees every winner."""
    counted = {"name": "tests.interrupted:Counted"}
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


def loaded(path: Path) -> CompareConfig:
    return load_compare_config(str(path), {})


def test_no_judge_is_asked_twice_wherever_a_comparison_is_cut(path: Path, tmp_path: Path) -> None:
    Counting.begin()
    assert compare(loaded(path), str(tmp_path / "whole"))
    expected = winners(tmp_path / "whole")
    calls, images = Counting.calls, Counting.images
    for at in (1, calls // 2, calls - 1):  # the last in a judge's own call
        root = tmp_path / f"cut{at}"
        Counting.begin(at)
        with pytest.raises(Killed):
            compare(loaded(path), str(root))
        seen = Counting.images
        Counting.begin()
        assert compare(loaded(path), str(root))
        assert winners(root) == expected
        assert seen + Counting.images == images  # the call that ended it had not been answered


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
def test_a_full_disk_ends_a_comparison_in_a_sentence(path: Path, tmp_path: Path) -> None:
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
    assert compare(loaded(path), str(tmp_path / "o"))
    assert compare(loaded(path), str(tmp_path / "whole"))
    assert winners(tmp_path / "o") == winners(tmp_path / "whole")
