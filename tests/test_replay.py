"""A recorded candidate made again from its rows equals the recorded picture, by every method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiment.config import parse_config
from experiment.replay import replay
from experiment.replay_kept import part
from experiment.replay_wanted import wanted
from experiment.runner import run
from main import main
from search import SEARCHES
from tests.test_every_search import OPTIONS, config
from utils import UserError


def recorded(root: Path, **changes: Any) -> tuple[Path, list[dict[str, Any]]]:
    folder = run(parse_config(config("flux", **changes)), str(root)).folder
    lines = (folder / "candidates.jsonl").read_text().splitlines()
    return folder, [json.loads(line) for line in lines]


QUICK = {"random", "zero-order", "ses", "steering", "draft"}  # one of each kind of recipe
CASES = [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in SEARCHES]


@pytest.mark.parametrize("method", CASES)
def test_the_last_winner_and_loser_of_every_method_come_out_alike(
    method: str, tmp_path: Path
) -> None:
    options = OPTIONS.get(method, {})
    verifier = {"name": "clip", "model_name": "shapes/models/shapes-clip"}
    folder, rows = recorded(
        tmp_path,
        search_args={"search_method": method, **options},
        verifier_args=verifier if method == "ascent" else {"name": "contrast"},
    )
    pictured = sorted(
        (r for r in rows if r["path"]), key=lambda r: (len(str(r["recipe"])), r["id"])
    )
    for row in {id(r): r for r in (pictured[-1], pictured[0])}.values():
        done = replay(folder, str(row["id"]), {})
        assert done.same, (row, done)


@pytest.mark.parametrize("pipeline", ["sd"])
@pytest.mark.parametrize("search", [{"search_method": "monitor", "quality_threshold": 1e9},
                                    {"search_method": "paths"}, {"search_method": "rbf"}],
                         ids=lambda search: search["search_method"])  # fmt: skip
def test_guidance_and_detours_are_followed(
    pipeline: str, search: dict[str, Any], tmp_path: Path
) -> None:
    content = config(pipeline, search_args=search)
    content["pipeline_call_args"]["num_inference_steps"] = 10
    content["budget"] = {"nfe": 60}
    folder = run(parse_config(content), str(tmp_path)).folder
    rows = [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["path"]][-1]
    assert replay(folder, str(last["id"]), {}).same


def test_previews_and_drafts_can_be_seen(tmp_path: Path) -> None:
    folder, rows = recorded(tmp_path, search_args={"search_method": "draft", "keep": 1})
    done = replay(folder, str(rows[0]["id"]), {})
    assert rows[0]["draft"] and done.same is None and done.path.is_file()


def test_a_drawn_noise_may_be_taken_further(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a user would: another number of steps is another image, and said to be."""
    folder, _ = recorded(tmp_path, search_args={"search_method": "random"})
    flags = ["--replay", str(folder), "--candidate", "0"]
    assert main(flags) == 0
    said = capsys.readouterr().out
    assert "every pixel as recorded" in said and "(score then " in said
    (exact,) = (folder / "replay").glob("*.png")
    before = exact.read_bytes()
    assert main([*flags, "--set", "pipeline_call_args.num_inference_steps=6"]) == 0
    said = capsys.readouterr().out
    # The recorded score and the exact picture's name belong to another image.
    assert "another image" in said and "score" not in said.partition(": ")[2]
    (changed,) = (folder / "replay" / "num_inference_steps=6").glob("*.png")
    assert str(changed) in said
    assert exact.read_bytes() == before != changed.read_bytes()


def test_changes_that_look_alike_do_not_share_a_folder() -> None:
    row = {"draft": False, "step": 4, "steps": 4}
    changes: list[dict[str, Any]] = [
        {}, {"a.eta": 1}, {"a.eta": -1}, {"a.eta": "1"}, {"a.x": "b c"}, {"a.x": "b/c"},
        {"a.x": "a" * 300}, {"a.x": "a" * 301}, {"a.eta": 1, "a.x": 2},
    ]  # fmt: skip
    names = [part(row, change) for change in changes]
    assert len(set(names)) == len(names)
    assert names[:2] == ["", "eta=1"] and max(map(len, names)) < 100
    assert not any("/" in name or name.startswith(".") for name in names)


def test_a_preview_does_not_take_its_finished_candidates_place(tmp_path: Path) -> None:
    folder, rows = recorded(tmp_path, search_args={"search_method": "halving", "pool": 4})
    last = next(row for row in rows if row["path"])
    first = next(row for row in rows if row["seed"] == last["seed"])
    assert first["step"] < last["step"]
    finished, preview = (replay(folder, str(row["id"]), {}) for row in (last, first))
    assert finished.same and preview.same is None
    assert finished.path.name == preview.path.name and finished.path != preview.path


def row_of(prompt: int, number: int, step: int = 4, **more: Any) -> dict[str, Any]:
    seed = 1000 + 100 * prompt + number % 2
    path = f"prompt@x_hash@{prompt}_i@1_s@{seed}.png" if step == 4 else None
    return {"id": number, "prompt_index": prompt, "prompt": f"text {prompt}", "seed": seed,
            "step": step, "steps": 4, "draft": False, "path": path, **more}  # fmt: skip


# Two prompts, with two candidates each that were previewed and then finished.
ROWS = [row_of(p, n, step=2 if n < 2 else 4) for p in range(2) for n in range(4)]


@pytest.mark.parametrize(
    ("candidate", "prompt", "number"),
    [
        ("0:1", 0, 1),
        ("1:3", 1, 3),
        ("1101", 1, 3),  # a seed: as it was finished
        ("0:1000", 0, 2),
        ("prompt@x_hash@1_i@1_s@1100.png", 1, 2),
        ("output/run/prompt@x_hash@0_i@1_s@1001.png", 0, 3),
    ],
)
def test_a_candidate_is_found_by_id_seed_or_name(candidate: str, prompt: int, number: int) -> None:
    row = wanted(ROWS, candidate)
    assert (row["prompt_index"], row["id"]) == (prompt, number)


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        ("1", r"PROMPT:1 \(0 is 'text 0', 1 is 'text 1'\)"),
        ("77", "no candidate '77': give an id from 0 to 3"),
        ("5:1", "counted|prompt's number and a colon"),
        ("prompt@x_hash@9_i@1_s@1.png", "or an image's file name"),
    ],
)
def test_who_is_not_found_is_told_how_candidates_are_named(candidate: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        wanted(ROWS, candidate)


def test_of_a_single_prompt_an_id_is_enough() -> None:
    assert wanted(ROWS[:4], "2")["id"] == 2


def test_a_candidate_without_its_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--candidate", "0", "--dry_run"]) == 2
    assert "--candidate goes with --replay" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("candidate", "said"), [("77", "no candidate '77'"), ("9:0", "no candida")]
)
def test_what_is_not_there_is_one_sentence(candidate: str, said: str, tmp_path: Path) -> None:
    folder, _ = recorded(tmp_path, search_args={"search_method": "zero-order"})
    with pytest.raises(UserError, match=said):
        replay(folder, candidate, {})
    with pytest.raises(UserError, match="is no run folder"):
        replay(tmp_path, "0", {})
    with pytest.raises(UserError, match="choose one whose recipe says 'draw'"):
        replay(folder, "1", {"pipeline_call_args.num_inference_steps": 6})
    with pytest.raises(UserError, match="changes of pipeline_call_args only"):
        replay(folder, "0", {"seed": 6})
