"""The list of runs: whole ones, unfinished ones, and folders that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiment.config import parse_config
from experiment.runner import run
from main import main
from tests.test_every_search import config
from tests.test_tt_tree import write_tree


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
    assert first.split()[:7] == [
        str(whole), "shapes/models/shapes-flux", "contrast", "random", "1", "of", "1",
    ]  # fmt: skip
    assert float(first.split()[7]) == pytest.approx(best, rel=0.01)
    assert "zero-order" in second and "1 of 1 (unfinished)" in second


def test_no_runs_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list_runs", "--output_dir", str(tmp_path / "none")]) == 2
    assert "There are no runs below" in capsys.readouterr().err


def listed(root: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert main(["--list_runs", "--output_dir", str(root)]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    return [line.removeprefix(str(root)) for line in lines]


def made(folder: Path, config: object, **files: object) -> Path:
    """A run folder with its config, and other files by their stems."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "manifest.json").write_text("{}")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


MODEL = "pretrained_model_name_or_path"


@pytest.mark.parametrize(
    ("config", "summary"),
    [
        ({MODEL: "x", "verifier_args": []}, None),
        ({MODEL: "x", "search_args": 3, "verifier_args": {"name": ["a"]}}, {"prompts": [3]}),
        ({MODEL: {"a": 1}}, {"prompts": {"a": 1}}),
        ({MODEL: "x"}, {"prompts": [{"best": 7}, {"best": {"score": "high"}}, {"failed": None}]}),
        ({MODEL: "x", "prompts": 5, "num_prompts": "many"}, []),
    ],
)
def test_odd_json_is_listed_as_far_as_it_goes(
    config: object, summary: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path / "odd", config, **({} if summary is None else {"summary": summary}))
    (line,) = listed(tmp_path, capsys)
    assert line.startswith("/odd ")


def test_failed_prompts_are_not_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = [{"prompt_index": 0, "best": {"score": 4.0}},
               {"prompt_index": 1, "best": None, "failed": "the GPU fell off the bus"}]  # fmt: skip
    made(tmp_path / "run", {MODEL: "x"}, summary={"prompts": prompts})
    (line,) = listed(tmp_path, capsys)
    assert "1 of 2, 1 failed" in line and "4.00" in line


@pytest.mark.parametrize("shared", [False, True])
def test_of_an_unfinished_run_only_what_is_done_counts(
    shared: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the prompt that is being searched; and the last line may be half written."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n" * 5)
    for name, wanted in (("all", "all"), ("some", 3), ("more", 9)):
        folder = made(tmp_path / name, {MODEL: "x", "prompts": str(prompts), "num_prompts": wanted})
        row = {"id": 0, "prompt": "a cat", "prompt_index": 1, "round": 1, "step": 4, "steps": 4,
               "seed": 1, "status": "ok", "score": 99.0, "path": "x.png"}  # fmt: skip
        (folder / "candidates.jsonl").write_text(json.dumps(row) + "\n")
        line = json.dumps({"summary": {"prompt_index": 0, "best": {"score": 2.0}}})
        (folder / "state" / "shards").mkdir(parents=True)
        place = "state/shards/prompt0.json" if shared else "state/done.jsonl"
        (folder / place).write_text(line + ("" if shared else "\n" + line[:20]))
    every, more, some = listed(tmp_path, capsys)
    assert "1 of 5 (unfinished)" in every and "1 of 5 (unfinished)" in more
    assert "1 of 3 (unfinished)" in some and "2.00" in some and "99" not in some


def test_a_comparisons_run_counts_the_prompts_that_it_has_winners_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made(tmp_path / "random" / "nfe40_s0", {MODEL: "x", "num_prompts": 4})
    lines = [{"summary": {"prompt_index": i, "best": {"score": 1.0 + i}}} for i in range(2)]
    (folder / "winners.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (line,) = listed(tmp_path, capsys)
    assert "2 of 4 (unfinished)" in line and "1.50" in line


def test_trees_as_tt_scale_flux_leaves_them_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path / "flux.1-dev" / "gemini" / "overall_score" / "20250101", graded=True)
    bare = write_tree(tmp_path / "elsewhere", graded=False)
    (bare / "config.json").unlink()
    first, second = listed(tmp_path, capsys)
    assert first.split()[1:] == ["-", "-", "-", "2", "6.40", "0.0"]
    assert second.split()[1:] == ["flux.1-dev", "gemini", "random", "2", "6.40", "0.0"]
