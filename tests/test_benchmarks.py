"""The benchmarks run and say what they should; how fast anything is, is not asked here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import __main__ as bench
from benchmarks import floors, overhead, parallel, shapes
from benchmarks.figures import Figure, figure, table, unbarred
from benchmarks.loop import main


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_parallel_benchmark_finds_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "parallel.json"
    assert parallel.main(["--quick", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert {count: len(each) for count, each in found["seconds"].items()} == {"1": 1, "2": 1}
    for part, ratio in found["speedup"].items():
        assert ratio == found["medians"]["1"][part] / found["medians"]["2"][part]
    printed = capsys.readouterr().out
    assert "2 processes beside 1" in printed and "the same bytes: yes" in printed


def test_an_unknown_config_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "configs/shapes_flx.json"]) == 2
    assert "configs/shapes_flux.json" in capsys.readouterr().err


def test_the_shapes_benchmark_counts_what_the_oracle_sees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads(Path("configs/shapes_flux.json").read_text())
    config["pipeline_call_args"]["num_inference_steps"] = 2  # too few to be right
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    argv = ["--config", str(path), "--num_prompts", "1", "--output_dir", str(tmp_path / "out")]
    assert shapes.main(argv) == 0
    out = capsys.readouterr().out
    assert "1 prompts" in out and "best of 16 by the verifier right" in out
    (folder,) = (tmp_path / "out").glob("*/*/*/*")
    assert len(list(folder.glob("*_i@*.png"))) == 16 + _copies(folder)


def _copies(folder: Path) -> int:
    """Pictures of winners that a later round of the nested pool did not beat."""
    rows = [json.loads(row) for row in (folder / "candidates.jsonl").read_text().splitlines()]
    own = {row["seed"]: row["round"] for row in rows}
    records = [json.loads(p.read_text()) for p in folder.glob("prompt@*.json")]
    return sum(own[r["best_noise_seed"]] != r["search_round"] for r in records)


def test_shares_come_with_an_interval() -> None:
    assert shapes.share([True] * 10) == " 100%  [100%, 100%]"
    assert shapes.share([True, False] * 50).startswith("  50%  [4")


def test_a_figure_is_its_repeats_median_held_against_its_bar() -> None:
    fast = figure("a run", "s", [3, 1, 2], bar=2.0)
    slow = figure("a run", "s", [3, 1, 2], bar=1.9)
    enough = figure("images", "images/s", [3, 1, 2], bar=1.9, side="least")
    assert (fast.median, fast.holds, slow.holds, enough.holds) == (2.0, True, False, True)
    assert [each.holds for each in unbarred([slow])] == [None]
    assert fast.recorded()["most"] == 3 and fast.recorded()["values"] == (3.0, 1.0, 2.0)
    printed = table("three runs", [slow, enough])
    assert "<= 1.9: MISSED" in printed and ">= 1.9: holds" in printed


def test_an_unknown_part_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["overhad"]) == 2
    assert "overhead" in capsys.readouterr().err


def test_a_missed_bar_is_an_exit_code_but_not_of_a_quick_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def figures(repeats: int, quick: bool) -> list[Figure]:
        return [figure("slow", "s", [3], bar=2), figure("fast", "s", [1], bar=2),
                figure("told", "s", [9])]  # fmt: skip

    monkeypatch.setattr(overhead, "figures", figures)
    path = tmp_path / "bench.json"
    assert bench.main(["overhead", "--json", str(path)]) == 1
    assert capsys.readouterr().err == "Bars missed: overhead, slow.\n"
    found = json.loads(path.read_text())["parts"]["overhead"]
    assert [each["holds"] for each in found] == [False, True, None]
    assert bench.main(["overhead", "--quick"]) == 0
    monkeypatch.setattr(overhead, "figures", lambda *_: figures(1, False)[1:])
    assert bench.main(["overhead"]) == 0 and capsys.readouterr().err == ""


def test_two_processes_are_held_to_their_bar_where_there_are_two_cores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = {"1": [{"search": 4.0, "whole": 9.0}] * 3, "2": [{"search": 2.0, "whole": 6.0}] * 3}
    found = {"seconds": turns, "speedup": {"search": 2.0, "whole": 1.5}}
    monkeypatch.setattr(parallel, "measure", lambda words, processes, repeats: found)
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: {0, 5})
    search, whole = parallel.figures(5, False)
    assert (search.values, search.bar, search.holds) == ((2.0,) * 3, 1.8, True)
    assert (whole.values, whole.holds) == ((1.5,) * 3, None)
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: {5})
    assert parallel.figures(5, False) == [] and "two cores" in capsys.readouterr().out


@pytest.mark.slow
def test_every_part_runs_and_is_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bench.json"
    assert bench.main(["--quick", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert tuple(found["parts"]) == bench.PARTS and found["quick"]
    printed = capsys.readouterr().out
    for part in bench.PARTS:
        assert f"{part}, " in printed
        assert all(figure["median"] > 0 for figure in found["parts"][part])


def test_a_floor_is_the_arithmetic_of_an_image() -> None:
    flux = floors.WORK["flux.1-dev"]
    assert flux.floor(50) == pytest.approx(4.727, abs=1e-3)
    assert floors.WORK["sd1.5"].floor(100) == pytest.approx(0.105, abs=1e-3)
