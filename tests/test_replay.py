"""A recorded candidate made again from its rows equals the recorded picture, by every method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiment.config import parse_config
from experiment.replay import replay
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
    assert "every pixel as recorded" in capsys.readouterr().out
    assert main([*flags, "--set", "pipeline_call_args.num_inference_steps=6"]) == 0
    assert "another image" in capsys.readouterr().out


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
