"""The benchmarks for a GPU run, on small models; how fast anything is, is not asked here."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, report_gpu, vlm
from benchmarks.busy import covered
from benchmarks.device import fresh_compiler, graphs, recompilations
from benchmarks.gpu_results import RECOMPILATIONS, Record, bars, read_all
from benchmarks.loaded import Bench
from pipelines.parts import denoisers
from utils import UserError

MACHINE = {"device": "a GPU", "packages": {"torch": "2", "diffusers": "0"}, "git_revision": None,
           "matrix_tflops": 790.0}  # fmt: skip


def part(seconds: float, **more: Any) -> dict[str, Any]:
    return {"seconds_an_image": seconds, "way": "compiled", "share_of_floor": 0.5,
            "machine": MACHINE, **more}  # fmt: skip


def record(folder: Path, name: str = "sd1.5", *, tiny: bool = False) -> Record:
    """As a first call leaves it: one part fast enough, one memory off, and no judge yet."""
    made = Record(folder, name, tiny)
    made.add("plain", part(2.0, way="eager"))
    made.add("compiled", part(0.2, peak_gb=6.0, expected_peak_gb=5.0, graphs=1))
    made.add("graphs", {"graphs": 3, "recompilations": 2, "machine": MACHINE})
    made.add("eager", part(0.5, way="eager", peak_gb=5.2, expected_peak_gb=5.0))
    return made


def test_bars_are_held_against_what_is_measured_and_nothing_else(tmp_path: Path) -> None:
    held = {figure.name: figure.holds for figure in bars(record(tmp_path).found)}
    assert held == {
        "sd1.5, as fast as one at a time": True,  # 10 times, of 8
        "sd1.5, peak of memory off the plan's": False,  # 20 %
        "sd1.5, recompilations": True,
    }


def test_flux_has_bars_of_its_own(tmp_path: Path) -> None:
    made = Record(tmp_path, "flux.1-dev", False)
    made.add("eager", part(7.0, way="eager"))
    made.add("fp8", part(4.4))
    made.add("judged", part(7.5, busy_share=0.96))
    made.add("graphs", {"graphs": 8, "recompilations": 3, "machine": MACHINE})
    made.add("batched", part(6.8, batch_size=4))
    held = {figure.name: figure.holds for figure in bars(made.found)}
    assert held == {
        "flux.1-dev, exact": False,
        "flux.1-dev, exact, 4 at a time": None,
        "flux.1-dev, fp8 drafts": True,
        "flux.1-dev, busy under Qwen and PNGs": False,
        "flux.1-dev, recompilations": False,
    }
    assert report_gpu._larger(made.found["parts"]) == "; 4 at a time 6.800 (50%)"


@pytest.mark.slow
def test_flux_is_measured_as_by_default_and_in_larger_batches_beside(tmp_path: Path) -> None:
    small = ["--tiny", "--device", "cpu", "--output_dir", str(tmp_path), "--images", "4"]
    names = ["compiled", "batched", "graphs"]
    assert gpu.main([*small, "--pipelines", "flux.1-dev", "--parts", *names]) == 0
    parts = read_all([tmp_path])["flux.1-dev"]["parts"]
    assert [parts[name].get("batch_size") for name in names] == [1, 2, None]
    assert parts["graphs"]["batch_sizes"] == [2, 1]
    assert parts["graphs"]["recompilations"] <= RECOMPILATIONS


def test_a_missed_bar_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    """By which call 0 of docs/performance.md tells it from a part that cannot be measured."""
    made = record(tmp_path)
    assert gpu.ended(made.found, whole=True) == gpu.MISSED  # memory
    assert gpu.ended(made.found, whole=False) == gpu.UNMEASURED
    assert gpu.ended(record(tmp_path, "sdxl", tiny=True).found, whole=True) == 0
    made.add("compiled", part(0.2, peak_gb=5.0, expected_peak_gb=5.0, graphs=1))
    assert gpu.ended(made.found, whole=True) == 0


def test_parts_of_several_calls_come_together(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for folder in (first, second):
        folder.mkdir()
    record(first)
    Record(second, "sd1.5", False).add("fp8", part(0.1))
    Record(second, "sd1.5", False).add("judged", part(0.3, busy_share=0.98))
    parts = read_all([first, second])["sd1.5"]["parts"]
    assert set(parts) == {"plain", "compiled", "graphs", "eager", "fp8", "judged"}
    assert parts["compiled"]["times_as_fast"] == 10
    record(tmp_path, tiny=True)
    with pytest.raises(UserError, match="another size"):
        read_all([first, tmp_path / "gpu_sd1.5.json"])


def test_tables_say_what_is_measured_and_what_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report_gpu.BEGIN}\nold\n{report_gpu.END}\nafter\n")
    assert report_gpu.main([str(tmp_path), "--into", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| sd1.5, as fast as one at a time | at least 8.0 x | 10.0 x (compiled), pass |" in text
    assert "| at most 5% | 20.0% (6.0 GB, expected 5.0, compiled), MISS |" in text
    assert "| flux.1-dev, exact | at most 6.9 s an image | not yet measured |" in text
    assert "| sd1.5 | 2.000 (50%) | 0.500 (50%) | 0.200 (50%) | 10.00 x |" in text
    assert "790 TFLOP/s" in text
    (tmp_path / "gpu_sdxl.json").write_text("{")
    assert report_gpu.main([str(tmp_path)]) == 2
    assert "is not JSON" in capsys.readouterr().err


def test_with_nothing_measured_every_figure_is_open(tmp_path: Path) -> None:
    text = report_gpu.tables(read_all([tmp_path]))
    assert "Nothing has been measured" in text and text.count(report_gpu.UNKNOWN) > 40
    assert not re.search(r"pass|MISS", text)


def test_time_that_two_models_work_counts_once() -> None:
    assert covered([(0, 2), (1, 3), (5, 6), (5, 9)], until=8) == 3 + 3
    assert covered([], until=1) == 0


def plus_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def plus_two(x: torch.Tensor) -> torch.Tensor:
    return x + 2


@pytest.mark.slow
def test_a_recompilation_is_no_first_graph() -> None:
    fresh_compiler()
    one, other = (torch.compile(each, backend="eager") for each in (plus_one, plus_two))
    for side in (2, 3):
        one(torch.ones(side))
        other(torch.ones(side))
    assert (graphs(), recompilations()) == (4, 2)  # one of each function
    one(torch.ones(1))
    assert (graphs(), recompilations()) == (5, 3)
    fresh_compiler()
    assert (graphs(), recompilations()) == (0, 0)


def test_the_judge_is_qwen_at_its_published_size() -> None:
    model = vlm._model(vlm.learned_tokenizer([vlm.ANSWER], 400)).make(tiny=False)
    assert sum(p.numel() for p in model.parameters()) == 8_292_166_656
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_part_that_fails_is_told_and_the_next_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(self: Bench, sizes: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(Bench, "batches", failing)
    small = ["--tiny", "--device", "cpu", "--output_dir", str(tmp_path)]
    argv = [*small, "--pipelines", "pixart-sigma", "--parts", "plain", "steps", "eager"]
    assert gpu.main(argv) == 1
    parts = read_all([tmp_path])["pixart-sigma"]["parts"]
    assert parts["steps"]["failed"] == "RuntimeError: no such kernel"
    assert parts["eager"]["images"] == 8 and parts["eager"]["decoded_again"] == 0
    assert parts["eager"]["times_as_fast"] > 0 and parts["plain"]["images"] == 2
    assert "no such kernel" in capsys.readouterr().out
    assert gpu.main([*argv, "--seconds", "0"]) == 1
    assert "not begun" in capsys.readouterr().out


@pytest.mark.slow
def test_where_compiling_fails_the_rest_is_measured_eager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def failing(self: Bench) -> float:
        tried.append(1)
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(Bench, "compile", failing)
    parts = ["compiled", "elsewhere", "judged", "graphs"]
    argv = ["--tiny", "--device", "cpu", "--output_dir", str(tmp_path), "--pipelines", "sd1.5"]
    assert gpu.main([*argv, "--parts", *parts]) == 1
    found = read_all([tmp_path])["sd1.5"]["parts"]
    assert len(tried) == 1
    for each in ("compiled", "graphs"):
        assert found[each]["failed"] == "RuntimeError: Failed to find C compiler"
    for each in ("elsewhere", "judged"):
        assert found[each]["way"] == "eager" and found[each]["busy_share"] > 0
        assert found[each]["uncompiled"] == found["compiled"]["failed"]
        assert "compile_seconds" not in found[each]


@pytest.mark.slow
def test_the_count_of_recompilations_can_fail(tmp_path: Path) -> None:
    """A denoiser whose graph is one for each number of rows: a plain search has one of them."""
    fresh_compiler()
    bench = Bench.load("pixart-sigma", "cpu", tiny=True)
    bench.work = replace(bench.work, batch=4)
    (model,) = denoisers(bench.pipe)
    forward = model.forward

    def each_its_own(hidden: torch.Tensor, **more: Any) -> Any:
        return forward(hidden * (1 + 0 * len(hidden)), **more)

    model.forward = torch.compile(each_its_own, backend="eager", dynamic=False)
    found = bench.graphs()
    assert found["batch_sizes"] == [4, 2, 1]
    assert found["recompilations"] > RECOMPILATIONS
    fresh_compiler()


def test_what_cannot_be_measured_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--pipelines", "flux", "--device", "cpu"]) == 2
    assert "flux.1-dev" in capsys.readouterr().err


@pytest.mark.slow
def test_every_part_runs_on_small_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["pixart-sigma", "flux.2-klein-4b"]
    argv = ["--tiny", "--device", "cpu", "--output_dir", str(tmp_path), "--pipelines", *names]
    assert gpu.main(argv) == 0
    printed = capsys.readouterr().out
    for name in names:
        parts = json.loads((tmp_path / f"gpu_{name}.json").read_text())["parts"]
        assert tuple(parts) == gpu.PARTS
        assert [each["batch_size"] for each in parts["steps"]["batches"]] == [1, 2]
        for each in ("eager", "compiled", "elsewhere", "judged"):
            assert parts[each]["images"] == 8 and parts[each]["unscored"] == 0
            assert 0 < parts[each]["made_share"] <= parts[each]["busy_share"] <= 1
            assert parts[each]["share_of_floor"] is None  # that of the full size
        assert 0 < parts["compiled"]["graphs"] < parts["graphs"]["graphs"]
        assert 0 < parts["graphs"]["recompilations"] <= RECOMPILATIONS
        assert parts["judged"]["judge"]["answered_tokens"] > 0
        assert parts["fp8"]["quantized_layers"] > 0
        assert f"{name}, all that is measured" in printed
    text = report_gpu.tables(read_all([tmp_path]))
    assert "no figure here says anything" in text and "Qwen alone" in text
    assert not re.search(r"pass|MISS", text)
