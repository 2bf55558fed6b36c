"""The benchmarks run and say what they should; how fast anything is, is not asked here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.loop import main


def test_the_loop_benchmark_compares_three_loops_that_make_the_same_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "loop.json"
    assert main(["--quick", "--json", str(path)]) == 0
    found = json.loads(path.read_text())

    assert list(found["workloads"]) == ["filled rounds"]
    filled = found["workloads"]["filled rounds"]
    assert filled["images"] == found["batch_size"]["ours"] == 8
    assert {name: len(s) for name, s in filled["seconds"].items()} == {
        "ours": 2, "one at a time": 2, "best batch": 2,
    }  # fmt: skip
    for name, ratio in filled["ratios"].items():
        pairs = zip(filled["seconds"][name], filled["seconds"]["ours"], strict=True)
        assert sorted(t / o for t, o in pairs) == [ratio["least"], ratio["most"]]
    assert filled["largest_difference"]["best batch"] == 0  # ours in batches of the same size
    assert filled["largest_difference"]["one at a time"] <= 1
    assert {"packages", "threads", "device", "git_revision"} <= found["machine"].keys()

    printed = capsys.readouterr().out
    for label in ("filled rounds, 8 images", "ours / one at a time", "ours / best batch"):
        assert label in printed


def test_an_unknown_config_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "configs/shapes_flx.json"]) == 2
    assert "configs/shapes_flux.json" in capsys.readouterr().err
