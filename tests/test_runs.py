"""The list of runs: whole ones, unfinished ones, and folders that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiment.config import parse_config
from experiment.runner import run
from main import main
from tests.test_every_search import config


def test_every_run_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(parse_config(config("flux")), str(tmp_path)).folder
    other = config("flux", search_args={"search_method": "zero-order"})
    cut = run(parse_config(other), str(tmp_path)).folder
    (cut / "summary.json").unlink()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "config.json").write_text("{ not a run")
    capsys.readouterr()
    assert main(["--list_runs", "--output_dir", str(tmp_path)]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "model", "verifier", "method", "prompts", "best", "mean", "MB"]
    best = json.loads((whole / "summary.json").read_text())["prompts"][0]["best"]["score"]
    assert first.split()[:5] == [
        str(whole), "shapes/models/shapes-flux", "contrast", "random", "1",
    ]  # fmt: skip
    assert float(first.split()[5]) == pytest.approx(best, rel=0.01)
    assert "zero-order" in second and "1 (unfinished)" in second


def test_no_runs_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list_runs", "--output_dir", str(tmp_path / "none")]) == 2
    assert "There are no runs below" in capsys.readouterr().err
