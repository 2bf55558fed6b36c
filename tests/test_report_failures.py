"""What went wrong in a run is told with the rest: prompts that failed, and runs that go on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from experiment.report_measures import told
from experiment.report_read import read_run
from tests.made_runs import HOSTILE, Made, Page, run_main
from utils import UserError, prompt_stem

REASON = "RuntimeError: the GPU fell off <b>its bus</b>"


def summary(text: str, index: int, best: int | None = None, **fields: Any) -> dict[str, Any]:
    """A prompt's part of summary.json."""
    chosen = {"id": best, "judges": {}} if best is not None else None
    return {"prompt": text, "prompt_index": index, "category": None, "best": chosen} | fields


def failed_run(folder: Path) -> Path:
    """One prompt that was searched for, two that failed before they had a row."""
    made = Made(folder)
    made.row("a red circle", 1.0)
    prompts = [
        summary("a red circle", 0, best=0),
        summary("a lost one", 1, failed=REASON, category="lost"),
        summary(HOSTILE, 2, failed=REASON),
    ]
    (made.write() / "summary.json").write_text(json.dumps({"prompts": prompts}))
    return folder


def test_failed_prompts_are_on_the_page_with_their_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = failed_run(tmp_path / "run")
    assert run_main(folder, "--report") == 0
    assert f"2 of 3 prompts of {folder} failed: {REASON} (2)" in capsys.readouterr().err
    page = Page(folder / "report.html")
    index = page.data["index"]
    assert [each["text"] for each in index["prompts"]] == ["a red circle", "a lost one", HOSTILE]
    assert [each["runs"][0].get("failed") for each in index["prompts"]] == [None, REASON, REASON]
    assert index["prompts"][1]["category"] == "lost"
    (run,) = index["runs"]
    assert (run["prompts"], run["winners"], run["failedPrompts"]) == (3, 1, 2)
    assert run["failed"] == [[REASON, 2]] and not run["unfinished"]
    assert page.data["p1"][0]["rows"] == []


def test_failed_prompts_are_in_the_tables(tmp_path: Path) -> None:
    folder = failed_run(tmp_path / "run")
    assert run_main(folder, "--table", "--curves") == 0
    text = (folder / "table.md").read_text()
    assert "| random | 1 of 3 |" in text and "## Prompts that failed" in text
    assert f"- a lost one: {REASON.replace('<', '&lt;')}" in text
    rows = list(csv.DictReader((folder / "table.csv").open()))
    (row,) = (row for row in rows if row["quantity"] == "failed_prompts")
    assert (row["metric"], row["value"], row["prompts"]) == (REASON, "2", "3")
    # What a prompt costs is not lowered by those for which nothing was made.
    (row,) = (row for row in rows if row["quantity"] == "NFE")
    assert (row["prompts"], row["value"]) == ("1", "20")


def test_a_prompt_that_failed_midway_keeps_its_images_and_its_reason(tmp_path: Path) -> None:
    made = Made(tmp_path / "run")
    made.row("a cat", 2.0)
    prompts = [summary("a cat", 2, best=0, failed=REASON)]
    (made.write() / "summary.json").write_text(json.dumps({"prompts": prompts}))
    (run,) = told([read_run(made.folder)])
    (searched,) = run.run.searched
    assert searched.failed == REASON and searched.best is not None
    assert run.run.done == 0 and len(run.winners) == 1


def test_equal_prompts_stay_apart_when_the_first_of_them_failed(tmp_path: Path) -> None:
    made = Made(tmp_path / "run")
    row = made.row("a cat", 1.0, path=None)
    stem = prompt_stem("same", 1)
    made.rows = [row | {"prompt": "same", "prompt_index": 1, "path": f"{stem}_i@1_s@5.png"}]
    prompts = [summary("same", 0, failed=REASON), summary("same", 1, best=0)]
    (made.write() / "summary.json").write_text(json.dumps({"prompts": prompts}))
    found = [(each.occurrence, each.failed, len(each.candidates), each.stem)
             for each in read_run(made.folder).searched]  # fmt: skip
    first, second = (f"prompt@{stem.removeprefix('prompt@')}" for stem in
                     (prompt_stem("same", 0), prompt_stem("same", 1)))  # fmt: skip
    assert found == [(0, REASON, 0, first), (1, "", 1, second)]


def test_a_run_in_which_every_prompt_failed_says_why(tmp_path: Path) -> None:
    made = Made(tmp_path / "run")
    prompts = [summary("a cat", 0, failed=REASON), summary("a dog", 1, failed="ValueError: no")]
    (made.write() / "summary.json").write_text(json.dumps({"prompts": prompts}))
    assert run_main(made.folder, "--report", "--table") == 0
    assert read_run(made.folder).failed == {("a cat", 0): REASON, ("a dog", 0): "ValueError: no"}
    assert "| random | 0 of 2 |" in (made.folder / "table.md").read_text()


def unfinished_run(folder: Path) -> Path:
    """Of four prompts one is done, one has failed, one is being searched for."""
    made = Made(folder)
    for prompt in ("a red circle", "a cat"):
        made.row(prompt, 1.0)
        made.row(prompt, 2.0)
    config = json.loads((folder / "config.json").read_text()) | {"num_prompts": 4}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "manifest.json").write_text("{}")
    state = folder / "state"
    state.mkdir()
    line = {"summary": summary("a red circle", 0, best=0), "batch_size": 8}
    (state / "done.jsonl").write_text(json.dumps(line) + "\n")
    (state / "prompt1.jsonl").write_text(json.dumps({"kind": "prompt", "prompt": "a lost one"}))
    (state / "prompt1.failed.txt").write_text(f"Traceback\n  File x\n{REASON}\n")
    return made.write()


def test_an_unfinished_run_says_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = unfinished_run(tmp_path / "run")
    run = read_run(folder)
    states = {each.text: (each.failed, each.unfinished) for each in run.searched}
    assert states == {"a red circle": ("", False), "a lost one": (REASON, False),
                      "a cat": ("", True)}  # fmt: skip
    assert run.unfinished and (run.done, run.wanted) == (1, 4)
    # What is done is done as it was chosen, not by the highest row.
    assert run.by_key["a red circle", 0].best == run.by_key["a red circle", 0].candidates[0]
    assert run_main(folder, "--report", "--table", "--curves") == 0
    assert "is unfinished: 1 of 4 prompts are done" in capsys.readouterr().err
    assert "| random | 2 of 4, unfinished: 1 done |" in (folder / "table.md").read_text()
    index = Page(folder / "report.html").data["index"]
    assert index["runs"][0]["unfinished"] and index["runs"][0]["done"] == 1
    assert [p["runs"][0].get("unfinished") for p in index["prompts"]] == [None, None, True]


def test_a_prompt_in_its_first_round_is_not_done(tmp_path: Path) -> None:
    """It has images by then, and no rows."""
    folder = unfinished_run(tmp_path / "run")
    made = Made(tmp_path / "other")
    row = made.row("a dog", 1.0)
    (made.folder / row["path"]).rename(folder / row["path"])
    (run,) = told([read_run(folder)])
    assert run.run.done == 1 and run.run.by_key["a dog", 0].unfinished
    assert run.total("NFE") == 4 * 20  # what is on record is told
    assert "NFE" in run.costs


def test_parts_of_several_processes_are_read(tmp_path: Path) -> None:
    folder = unfinished_run(tmp_path / "run")
    shards = folder / "state" / "shards"
    shards.mkdir()
    part = {"summary": summary("a cat", 2, best=0), "batch_size": 8}
    (shards / "prompt2.json").write_text(json.dumps(part))
    (shards / "prompt3.json").write_text("{")
    run = read_run(folder)
    assert run.done == 2
    assert [each.name for each in run.left_out] == ["state/shards/prompt3.json, line 1"]


def test_a_finished_run_or_a_foreign_one_is_not_called_unfinished(tmp_path: Path) -> None:
    made = Made(tmp_path / "foreign")
    made.row("a cat", 1.0)
    assert not read_run(made.write()).unfinished  # nothing says that it was ours to go on with
    assert not read_run(failed_run(tmp_path / "failed")).unfinished


@pytest.mark.parametrize("content", ["7", '{"prompts": 3}', '{"prompts": [{"prompt": "x"}]}', "["])
def test_a_damaged_summary_costs_itself_only(tmp_path: Path, content: str) -> None:
    folder = failed_run(tmp_path / "run")
    (folder / "summary.json").write_text(content)
    run = read_run(folder)
    assert [each.text for each in run.searched] == ["a red circle"]
    assert [each.name for each in run.left_out] == ["summary.json"]


def test_a_folder_that_has_begun_and_made_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="no results"):
        read_run(tmp_path)
