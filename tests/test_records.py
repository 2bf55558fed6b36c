"""What the files of a run folder are read as."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from experiment.records import PromptKey, by_prompt, read_best, read_candidates, read_rounds
from utils import UserError, prompt_stem

PROMPT = "a cat, asleep"
ROW = {
    "id": 17, "prompt": PROMPT, "prompt_index": 0, "round": 4, "step": 20, "steps": 20,
    "seed": 103, "recipe": {"op": "draw", "index": 17}, "parents": [3], "status": "ok",
    "score": 0.81, "scores": {"clip": {"clip_score": 0.81}}, "judges": {}, "explanation": "",
    "nfe": 20, "rows": 40, "batch_size": 8, "seconds": 0.15, "path": None,
}  # fmt: skip


def write_round(folder: Path, stem: str, number: int, seed: int, **changes: Any) -> Path:
    """A winner's JSON with tt-scale-flux's fields."""
    path = folder / f"{stem}_i@{number}_s@{seed}.json"
    fields = {
        "prompt": PROMPT, "search_round": number, "num_noises": 2**number,
        "best_noise_seed": seed, "best_score": 0.5, "choice_of_metric": "clip_score",
        "best_img_path": "elsewhere/lost.png",
    }  # fmt: skip
    path.write_text(json.dumps(fields | changes))
    return path


def write_rows(folder: Path, *lines: str) -> None:
    (folder / "candidates.jsonl").write_text("\n".join(lines))


def test_a_round_is_read_from_its_record_and_its_file_name(tmp_path: Path) -> None:
    path = write_round(tmp_path, prompt_stem(PROMPT), 3, 99)
    (record,) = read_rounds(tmp_path)
    assert record.prompt == PROMPT and record.key.slug == "a_cat_asleep"
    assert (record.search_round, record.num_noises, record.best_noise_seed) == (3, 8, 99)
    assert (record.score, record.choice_of_metric) == (0.5, "clip_score")
    # the record's own path is relative to a working directory that is gone
    assert record.image_path == path.with_suffix(".png")


@pytest.mark.parametrize(
    ("best_score", "score", "explanation"),
    [
        (3, 3.0, ""),
        ({"explanation": "sharp", "score": 7.5}, 7.5, "sharp"),
        ({"explanation": "blocked", "score": None}, math.nan, "blocked"),
        (None, math.nan, ""),
        ("high", math.nan, ""),
    ],
)
def test_scores_are_numbers_or_graded_and_nan_without_an_answer(
    tmp_path: Path, best_score: Any, score: float, explanation: str
) -> None:
    write_round(tmp_path, prompt_stem(PROMPT), 1, 1, best_score=best_score)
    (record,) = read_rounds(tmp_path)
    assert record.score == pytest.approx(score, nan_ok=True)
    assert record.explanation == explanation


def test_rounds_come_in_numerical_order(tmp_path: Path) -> None:
    for number in (10, 2, 1, 9):
        write_round(tmp_path, prompt_stem(PROMPT), number, 5)
    assert [record.search_round for record in read_rounds(tmp_path)] == [1, 2, 9, 10]


def test_prompts_are_told_apart_by_slug_and_hash(tmp_path: Path) -> None:
    long = "a very long prompt " * 10
    stems = [prompt_stem(long + "one"), prompt_stem(long + "two"), prompt_stem(long + "two", 1)]
    for stem in stems:
        write_round(tmp_path, stem, 1, 7)
    groups = by_prompt(read_rounds(tmp_path))
    assert len({key.slug for key in groups}) == 1
    assert {f"prompt@{key.slug}_hash@{key.hash}" for key in groups} == set(stems)


def test_other_files_of_the_folder_are_no_rounds(tmp_path: Path) -> None:
    for name in ("config.json", "manifest.json", "summary.json", ".prompt@a_hash@b_i@1_s@2.json"):
        (tmp_path / name).write_text("{}")
    assert read_rounds(tmp_path) == []


@pytest.mark.parametrize("content", ["", "{", "[1]", "\udcff"])
def test_an_unreadable_record_is_named(tmp_path: Path, content: str) -> None:
    path = write_round(tmp_path, prompt_stem(PROMPT), 1, 1)
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=path.name):
        read_rounds(tmp_path)


def test_a_record_with_nothing_in_it_says_what_its_name_says(tmp_path: Path) -> None:
    (tmp_path / "prompt@a_cat_hash@0123abcd_i@2_s@8.json").write_text("{}")
    (record,) = read_rounds(tmp_path)
    assert record.key == PromptKey("a_cat", "0123abcd")
    assert (record.prompt, record.search_round, record.best_noise_seed) == ("a cat", 2, 8)


def test_rows_are_read_in_the_order_they_were_written(tmp_path: Path) -> None:
    preview = ROW | {"id": 4, "step": 10, "path": None, "score": None, "status": "blocked"}
    write_rows(tmp_path, json.dumps(ROW | {"path": "a.png"}), json.dumps(preview), "")
    finished, blocked = read_candidates(tmp_path)
    assert (finished.id, finished.score, finished.parents) == (17, 0.81, (3,))
    assert (finished.nfe, finished.rows, finished.path) == (20, 40, "a.png")
    assert (blocked.id, blocked.status, blocked.path) == (4, "blocked", None)
    assert math.isnan(blocked.score)


def test_a_folder_without_rows_has_no_candidates(tmp_path: Path) -> None:
    assert read_candidates(tmp_path) == []


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_a_torn_last_row_is_left_out(tmp_path: Path, kept: int) -> None:
    row = json.dumps(ROW)
    write_rows(tmp_path, row, row, row[:kept])
    assert len(read_candidates(tmp_path)) == 2


def test_a_row_cut_inside_a_character_is_left_out(tmp_path: Path) -> None:
    cut = b'{"id": 1, "prompt": "\xe7\x8c'
    (tmp_path / "candidates.jsonl").write_bytes(json.dumps(ROW).encode() + b"\n" + cut)
    assert len(read_candidates(tmp_path)) == 1


@pytest.mark.parametrize("damage", ['{"id": 3, "pro', "7", "{}", '{"id": null}'])
def test_damage_in_the_middle_names_the_file_and_the_line(tmp_path: Path, damage: str) -> None:
    write_rows(tmp_path, json.dumps(ROW), "", damage, json.dumps(ROW), "")
    with pytest.raises(UserError, match=r"Line 3 of .*candidates\.jsonl"):
        read_candidates(tmp_path)


def test_a_line_separator_inside_a_prompt_does_not_end_its_row(tmp_path: Path) -> None:
    prompt = "a\u2028b\x85c"
    text = json.dumps(ROW | {"prompt": prompt}, ensure_ascii=False) + "\n"
    (tmp_path / "candidates.jsonl").write_text(text, encoding="utf-8")
    assert [row.prompt for row in read_candidates(tmp_path)] == [prompt]


def test_the_summary_names_the_best_images(tmp_path: Path) -> None:
    assert read_best(tmp_path) == frozenset()
    best = [{"best": {"path": "a.png"}}, {"best": None}, {"best": {"path": None}}]
    (tmp_path / "summary.json").write_text(json.dumps({"prompts": best}))
    assert read_best(tmp_path) == {"a.png"}


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"prompts": [1]}'])
def test_a_damaged_summary_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=r"summary\.json"):
        read_best(tmp_path)
