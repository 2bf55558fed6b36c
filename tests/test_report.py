"""The page, the curves, the tables and the best images that are made of runs."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from experiment.report_curves import stairs
from experiment.report_measures import (
    NFE,
    SECONDS,
    best_of_n,
    best_so_far,
    draws,
    mean_curve,
    pair,
    told,
)
from experiment.report_read import read_run
from experiment.top_k import top, top_pictures
from tests.made_runs import (
    HOSTILE,
    PROMPTS,
    Made,
    Page,
    categorised,
    graded_run,
    run_main,
)
from utils import ROOT, UserError, prompt_stem

# Reading.


def test_a_run_is_read_with_its_winners_judges_and_costs(tmp_path: Path) -> None:
    (run,) = told([read_run(graded_run(tmp_path / "run"))])
    assert run.run.left_out == () and len(run.winners) == 6
    assert [(m.label, m.judge) for m in run.metrics] == [
        ("overall_score", False), ("realism", False), ("clip_score", True),
    ]  # fmt: skip
    assert run.total(NFE) == 6 * 7 * 20 and run.total(SECONDS) == 6 * 7 * 0.5
    assert run.failures == {"blocked": 6}
    assert run.fooled == {(PROMPTS[-1], 0)}  # the highest by the verifier, the lowest by the judge


def test_what_the_run_chose_is_its_winner(tmp_path: Path) -> None:
    made = Made(tmp_path / "run")
    for score in (1.0, 5.0, 3.0):
        made.row("a cat", score)
    best = {"id": 2, "judges": {"clip": {"clip_score": 0.25}}}
    summary = {"prompts": [{"prompt": "a cat", "prompt_index": 2, "best": best}]}
    (made.write() / "summary.json").write_text(json.dumps(summary))
    (run,) = told([read_run(made.folder)])
    assert run.winners["a cat", 0] == {"overall_score": 3.0, "realism": 2.0, "clip_score": 0.25}


def test_a_comparisons_judges_are_heard(tmp_path: Path) -> None:
    made = Made(tmp_path / "run")
    path = made.row("a cat", 5.0)["path"]
    scores = {"overall_score": 5.0, "clip_score": 0.25, "hpsv2": None}
    line = {"prompt_index": 2, "winners": [{"path": None}, {"path": path, "scores": scores}]}
    (made.write() / "winners.jsonl").write_text(json.dumps(line) + "\n7\n")
    (run,) = told([read_run(made.folder)])
    assert run.judges == ("clip_score",)
    assert run.winners["a cat", 0] == {"overall_score": 5.0, "realism": 2.0, "clip_score": 0.25}
    assert [each.name for each in run.run.left_out] == ["winners.jsonl, line 2"]


def test_previews_drafts_and_rejected_images_are_no_winners(tmp_path: Path) -> None:
    made = Made(tmp_path / "run")
    made.row("a cat", 9.0, step=10, path=None)
    made.row("a cat", 8.0, draft=True, steps=5, step=5, path=None)
    made.row("a cat", 7.0, path=None)
    made.row("a cat", 2.0)
    made.row("a cat", None, status="unasked", step=10, path=None)
    (run,) = told([read_run(made.write())])
    assert run.winners["a cat", 0]["overall_score"] == 2.0
    assert not run.failures  # nobody asked for a score
    assert best_so_far(run.run.searched[0], NFE) == [(60, 7.0), (100, 7.0)]


def test_equal_prompts_stay_apart(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    made = Made(folder)
    for index, occurrence in ((0, 0), (1, 1)):
        stem = prompt_stem("same", occurrence)
        made.rows.append(
            made.row("a cat", 1.0 + index, path=None)
            | {"prompt": "same", "prompt_index": index, "path": f"{stem}_i@1_s@5.png"}
        )
    made.rows = [row for row in made.rows if row["prompt"] == "same"]
    run = read_run(made.write())
    assert [(each.text, each.occurrence) for each in run.searched] == [("same", 0), ("same", 1)]
    assert [len(each.rounds) for each in run.searched] == [1, 1]


@pytest.mark.parametrize(
    "name",
    ["../secret.png", "/etc/passwd", "a\\b.png", "javascript:alert(1)//x", "", "..", 7, [], None],
)
def test_only_files_of_the_folder_are_images(tmp_path: Path, name: Any) -> None:
    made = Made(tmp_path / "run")
    made.row("a cat", 1.0)
    made.rows.append(made.rows[0] | {"id": 1, "score": 9.0, "path": name})
    (made.folder / "candidates.jsonl").write_text("\n".join(map(json.dumps, made.rows)))
    run = read_run(made.folder)
    assert run.searched[0].candidates[1].path is None
    assert run.searched[0].best == run.searched[0].candidates[0]


DAMAGE: dict[str, bytes] = {
    "cut": b'{"id": 3, "pro',
    "not an object": b"7",
    "empty object": b"{}",
    "no id": b'{"id": null}',
    "not text": b"\xff\xfe\x00",
    "deep": b"[" * 100_000,
    "long number": b'{"id": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_damaged_rows_are_left_out_and_named(
    tmp_path: Path, damage: bytes, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = graded_run(tmp_path / "run")
    lines = (folder / "candidates.jsonl").read_bytes().splitlines()
    at = {"first": 0, "middle": 20, "last": len(lines)}[place]
    lines.insert(at, damage)
    (folder / "candidates.jsonl").write_bytes(b"\n".join(lines))
    assert run_main(folder, "--report", "--table", "--curves", "--top_k", 2) == 0
    warned = capsys.readouterr().err
    assert "1 left out" in warned and f"candidates.jsonl, line {at + 1}" in warned
    page = Page(folder / "report.html")
    assert page.data["index"]["leftOutCount"] == 1
    assert sum(len(run["rows"]) for i in range(6) for run in page.data[f"p{i}"]) == 42


def test_numbers_that_no_json_holds_do_no_harm(tmp_path: Path) -> None:
    made = Made(tmp_path / "run")
    made.row("a cat", 2.0)
    made.row("a cat", math.nan, status="ok")
    made.row("a cat", math.inf, recipe={"op": "draw", "by": [math.nan, {"x": -math.inf}]})
    made.row("a cat", 1.0, guidance=math.nan, nfe=None, seconds="long", scores={"g": [1], "h": {}})
    made.row("a cat", 1.0, scores=[3], judges="none", nfe=10**400)
    folder = made.write()
    assert run_main(folder, "--report", "--table", "--curves", "--top_k", 2) == 0
    assert "Infinity" not in Page(folder / "report.html").text.split("<script>")[0]
    assert read_run(folder).searched[0].best.score == 2.0  # type: ignore[union-attr]


def test_missing_images_foreign_files_and_damaged_ones_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = graded_run(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "candidates.jsonl").open()]
    best = max((row for row in rows if row["prompt"] == "a cat"), key=lambda r: r["score"] or 0)
    other = next(row for row in rows if row["prompt"] == "a dog" and row["score"])
    (folder / best["path"]).write_bytes(b"not an image")
    (folder / other["path"]).unlink()
    (folder / "notes.txt").write_text("mine")
    (folder / "summary.json").write_text('{"prompts": [1]}')
    (folder / "config.json").write_text("{")
    (folder / "prompt@x_hash@0_i@1_s@1.json").mkdir()
    assert run_main(folder, "--report", "--table") == 0
    warned = capsys.readouterr().err
    for name in (best["path"], other["path"], "notes.txt", "summary.json", "config.json", "@x_"):
        assert name in warned
    page = Page(folder / "report.html")
    at = [prompt["text"] for prompt in page.data["index"]["prompts"]].index("a cat")
    assert page.data[f"p{at}"][0]["thumb"] is None
    assert page.data["index"]["prompts"][at]["runs"][0]["values"] is not None


def test_an_interrupted_run_without_records_of_rounds_has_its_report(tmp_path: Path) -> None:
    folder = graded_run(tmp_path / "run")
    for record in folder.glob("prompt@*.json"):
        record.unlink()
    (folder / "candidates.jsonl").write_bytes((folder / "candidates.jsonl").read_bytes()[:-30])
    assert run_main(folder, "--report", "--table", "--curves", "--top_k", 2) == 0


def test_a_folder_that_holds_nothing_is_refused_and_others_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = graded_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "candidates.jsonl").write_text("{\n")
    with pytest.raises(UserError, match="no results"):
        read_run(tmp_path / "empty")
    out = tmp_path / "out"
    wanted = ["--table", "--output", out]
    assert run_main(tmp_path / "empty", tmp_path / "foreign", folder, *wanted) == 2
    warned = capsys.readouterr().err
    assert f"no results in {tmp_path / 'empty'}" in warned and "line 1" in warned
    assert (out / "table.md").exists()


# Measures.


def test_curves_hold_their_value_and_end_with_the_search(tmp_path: Path) -> None:
    made = Made(tmp_path / "run")
    for prompt, scores in (("a cat", [3.0, 1.0, 5.0, 2.0]), ("a dog", [1.0, 2.0])):
        for score in scores:
            made.row(prompt, score)
    (run,) = told([read_run(made.write())])
    cat, dog = run.run.searched
    assert best_so_far(cat, NFE) == [(20, 3), (60, 5), (80, 5)]
    assert best_so_far(dog, SECONDS) == [(0.5, 1), (1.0, 2)]
    means = [(x, estimate.mean) for x, estimate in mean_curve(run, NFE)]
    assert means == [(20, 2), (40, 2.5), (60, 3.5), (80, 3.5)]


def test_draws_are_fresh_noises_that_nothing_chose(tmp_path: Path) -> None:
    made = Made(tmp_path / "run")
    for score in (1.0, 4.0, None, 2.0):
        made.row("a cat", score)
    made.row("a cat", 9.0, parents=[0])  # went on because its preview was good
    made.row("a cat", 9.0, recipe={"op": "perturb", "of": 1})
    made.row("a cat", 9.0, draft=True)
    made.row("a cat", 9.0, step=10)
    (run,) = told([read_run(made.write())])
    assert draws(run.run.searched[0]) == [1, 4, 2]
    curve = {n: estimate.mean for n, estimate in best_of_n(run)}
    assert curve == pytest.approx({1: 7 / 3, 2: (4 + 4 + 2) / 3, 3: 4})


def test_pairs_are_of_prompts_that_both_have(tmp_path: Path) -> None:
    one, two = Made(tmp_path / "one"), Made(tmp_path / "two")
    for at, prompt in enumerate(PROMPTS[:4]):
        one.row(prompt, 1.0 + at)
        if at:
            two.row(prompt, 1.0 + at + (0.5 if at > 1 else 0.0))
    first, second = told([read_run(one.write()), read_run(two.write())])
    found = pair(second, first, "overall_score")
    assert found is not None and found.prompts == 3
    assert found.difference.mean == pytest.approx(1 / 3)
    assert found.wins.mean == pytest.approx(2.5 / 3)
    assert pair(second, first, "clip_score") is None


def test_runs_are_called_by_what_tells_them_apart(tmp_path: Path) -> None:
    def names(*folders: Path) -> list[str]:
        return [run.name for run in told([read_run(folder) for folder in folders])]

    a = graded_run(tmp_path / "clip" / "1", method="random")
    b = graded_run(tmp_path / "clip" / "2", method="zero-order")
    c = graded_run(tmp_path / "clip" / "3", method="random")
    d = graded_run(tmp_path / "hps" / "1", method="random")
    assert names(a, b) == ["random", "zero-order"]
    assert names(a, c) == ["1", "3"]
    assert names(a, d) == ["clip", "hps"]
    assert names(a, b, d) == ["clip/1", "clip/2", "hps/1"]


def test_runs_are_called_by_their_settings_before_their_folders(tmp_path: Path) -> None:
    def run(name: str, **changes: Any) -> Path:
        made = Made(tmp_path / name)
        made.row("a cat", 1.0)
        config = json.loads((made.folder / "config.json").read_text()) | changes
        (made.folder / "config.json").write_text(json.dumps(config))
        return made.write()

    def names(*folders: Path) -> list[str]:
        return [run.name for run in told([read_run(folder) for folder in folders])]

    one = run("20260101_000000", pretrained_model_name_or_path="models/one", seed=0)
    other = run("20260102_000000", pretrained_model_name_or_path="other/two/", seed=1)
    again = run("20260103_000000", pretrained_model_name_or_path="models/one", seed=1)
    strict = run("20260104_000000", search_args={"search_method": "random", "pool": "nested"})
    clip = run("20260105_000000", verifier_args={"name": "clip"}, budget={"nfe": 80})
    assert names(one, other) == ["one", "two"]
    assert names(one, other, again) == ["one seed 0", "two seed 1", "one seed 1"]
    assert names(strict, run("20260106_000000")) == ["20260104_000000", "20260106_000000"]
    assert names(clip, strict) == ["clip", "grader"]
    assert names(one) == ["random"]


# The page.


def test_the_page_is_one_file_that_fetches_nothing_but_images(tmp_path: Path) -> None:
    folder = graded_run(tmp_path / "run")
    assert run_main(folder, "--report") == 0
    page = Page(folder / "report.html")
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page.text)
    for tag, attributes in page.tags:
        assert not {"src", "href"} & attributes.keys(), tag
        assert tag not in {"link", "iframe", "object", "embed", "base"}


def test_no_prompt_or_explanation_becomes_markup(tmp_path: Path) -> None:
    folder = graded_run(tmp_path / "run", method=HOSTILE)
    assert run_main(folder, "--report") == 0
    page = Page(folder / "report.html")
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 2 + len(PROMPTS)  # index and code, and a block a prompt
    assert "img" not in tags and "b" not in tags
    assert not any(name.startswith("on") for _, found in page.tags for name in found)
    # What was escaped comes back as it was.
    texts = [prompt["text"] for prompt in page.data["index"]["prompts"]]
    assert texts == list(PROMPTS)
    explanations = {row[13] for row in page.data["p1"][0]["rows"]}
    assert f"{HOSTILE} says 5" in explanations
    assert "innerHTML" not in page.text and "insertAdjacentHTML" not in page.text


def test_winners_are_inside_and_all_other_images_lie_where_the_page_says(tmp_path: Path) -> None:
    runs = [graded_run(tmp_path / f"run #{i} äß", method=str(i)) for i in (1, 2)]
    out = tmp_path / "out"
    assert run_main(*runs, "--report", "--output", out) == 0
    page = Page(out / "report.html")
    for i, run in enumerate(page.data["index"]["runs"]):
        assert (out / unquote(run["folder"])).resolve() == runs[i].resolve()
        for at in range(6):
            shown = page.data[f"p{at}"][i]
            assert shown["thumb"].startswith("data:image/webp;base64,")
            for row in shown["rows"]:
                assert row[12] == 1
                name = f"{shown['stem']}_i@{row[1]}_s@{row[4]}.png"
                assert (out / unquote(run["folder"]) / name).exists()
    assert page.text.count("data:image") == 12


def test_videos_are_shown_by_their_middle_frame(tmp_path: Path) -> None:
    from experiment.video import mp4_bytes

    made = Made(tmp_path / "run")
    name = f"{prompt_stem('a cat')}_i@1_s@7.mp4"
    made.row("a cat", 1.0, seed=7, path=name)
    frames = [Image.new("RGB", (64, 64), (0, 0, level)) for level in (0, 120, 255)]
    (made.folder / name).write_bytes(mp4_bytes(frames, 8))
    assert run_main(made.write(), "--report") == 0
    page = Page(made.folder / "report.html")
    (shown,) = page.data["p0"]
    assert shown["rows"][0][12] == name and shown["rounds"][0]["name"] == name
    assert shown["thumb"].startswith("data:image/webp")


def test_the_page_is_the_same_each_time(tmp_path: Path) -> None:
    folder = graded_run(tmp_path / "run")
    run_main(folder, "--report", "--table")
    before = {name: (folder / name).read_bytes() for name in ("report.html", "table.csv")}
    run_main(folder, "--report", "--table")
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_a_rejected_round_that_holds_the_best_stands_in_its_place(tmp_path: Path) -> None:
    made = Made(tmp_path / "run", "zero-order")
    made.row("a cat", 1.0)
    made.row("a cat", 3.0, round=2)  # kept, as the prompt's best so far
    made.row("a cat", 2.0, round=2, path=None)
    made.row("a cat", 0.5, round=3, path=None)
    made.row("a cat", 2.5, round=4)
    folder = made.write()
    (folder / made.rows[1]["path"]).with_suffix(".json").unlink()  # a rejected round has none
    assert run_main(folder, "--report") == 0
    (shown,) = Page(folder / "report.html").data["p0"]
    assert shown["best"] == 1
    told = [(r["number"], r["id"], r["score"], r["n"], r["name"], r["rejected"])
            for r in shown["rounds"]]  # fmt: skip
    assert told == [
        (1, 0, 1, 1, made.rows[0]["path"], False),
        (2, 1, 3, 2, made.rows[1]["path"], True),
        (3, 3, 0.5, 1, None, True),
        (4, 4, 2.5, 1, made.rows[4]["path"], False),
    ]
    assert shown["rounds"][2]["why"] == "rejected: no better one"


def test_the_page_tells_no_path(tmp_path: Path) -> None:
    folder = graded_run(tmp_path / "run")
    assert run_main(folder, "--report") == 0
    assert str(tmp_path) not in Page(folder / "report.html").text


# Tables, curves, the best.


def test_tables_tell_categories_apart(tmp_path: Path) -> None:
    folder = categorised(tmp_path / "run")
    assert run_main(folder, "--table") == 0
    with open(folder / "table.csv", newline="") as file:
        winners = [row for row in csv.DictReader(file) if row["quantity"] == "winner"]
    means = {r["category"]: (r["prompts"], float(r["value"])) for r in winners
             if r["metric"] == "overall_score"}  # fmt: skip
    assert means == {"": ("4", 3.75), "shapes": ("2", 1.5), "animals": ("1", 5.0)}
    text = (folder / "table.md").read_text()
    assert "## Winners by category" in text and "| animals | 1 | 5 |" in text
    # Rows of runs that know no categories are read as before.
    assert "by category" not in _table_of(graded_run(tmp_path / "other"))


def _table_of(folder: Path) -> str:
    assert run_main(folder, "--table") == 0
    return (folder / "table.md").read_text()


def test_the_tables_say_what_the_rows_do(tmp_path: Path) -> None:
    runs = [graded_run(tmp_path / "one"), graded_run(tmp_path / "two", 0.5, "zero-order")]
    out = tmp_path / "out"
    assert run_main(*runs, "--table", "--output", out) == 0
    rows = list(csv.DictReader((out / "table.csv").open()))

    def value(run: str, quantity: str, metric: str = "overall_score", **more: str) -> float:
        wanted = {"run": run, "quantity": quantity, "metric": metric, **more}
        (row,) = (row for row in rows if wanted.items() <= row.items())
        return float(row["value"])

    lines = (runs[0] / "candidates.jsonl").read_text().splitlines()
    scores: dict[str, list[float]] = {}
    for row in map(json.loads, lines):
        if row["score"] is not None:
            scores.setdefault(row["prompt"], []).append(row["score"])
    best = np.mean([max(each) for each in scores.values()])
    assert value("random", "winner") == pytest.approx(best)
    assert value("random", "best_of_n", n="6") == pytest.approx(best)
    mean = np.mean([np.mean(each) for each in scores.values()])
    assert value("random", "best_of_n", n="1") == pytest.approx(mean)
    assert value("random", "NFE", "") == 140
    assert value("random", "failures", "blocked") == 6
    assert value("random", "fooled") == 1
    assert value("zero-order", "difference", against="random") == pytest.approx(0.5)
    assert value("zero-order", "win_rate", "clip_score", against="random") == 0.5
    # Ranks 1 to 6 by the verifier, and by the judge 2 to 6 and 1: 1 - 6 * 30 / 210.
    assert value("random", "rank_correlation", against="clip_score") == pytest.approx(1 / 7)
    text = (out / "table.md").read_text()
    assert "| +0.5 | 1 |" in text and "**" not in text  # of too few prompts to tell
    assert "No intervals and no tests: fewer than 10 prompts." in text
    assert "<script" not in text


def test_bold_differences_of_runs_have_passed_their_tests(tmp_path: Path) -> None:
    """The second run scores higher on all of 12 prompts, and is right on 11 more."""
    runs = []
    for name, gain in (("one", 0), ("two", 1)):
        made = Made(tmp_path / name)
        for n in range(12):
            judges = {"oracle": {"right": float(n == 0 or gain)}}
            made.row(f"{n} cats", 1 + n + 0.5 * gain, prompt_index=n, judges=judges)
        runs.append(made.write())
    out = tmp_path / "out"
    assert run_main(*runs, "--table", "--report", "--output", out) == 0
    text = (out / "table.md").read_text()
    assert "**+0.5 [+0.5, +0.5]**" in text and "**+0.917 [" in text
    assert text.count("after Holm's correction for the 1 pair of runs") == 3  # metrics
    assert text.count("McNemar's") == 1
    rows = list(csv.DictReader((out / "table.csv").open()))
    found = {(row["metric"], row["quantity"]): row["value"] for row in rows if row["against"]}
    assert float(found["right", "p"]) == float(found["right", "p_holm"]) == 2 / 2**11
    pairs = Page(out / "report.html").data["index"]["pairs"]
    assert {pair[0]: pair[-1] for pair in pairs}["right"] == 2 / 2**11


def test_the_curves_are_a_picture(tmp_path: Path) -> None:
    runs = [graded_run(tmp_path / "a$b$"), graded_run(tmp_path / "two", 0.5)]
    assert run_main(*runs, "--curves", "--output", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "curves.png") as picture:
        assert picture.width > 1000 and picture.height > 800  # two panels by two


def test_curves_end_with_a_riser_where_the_last_value_is_another() -> None:
    assert stairs([20, 40, 60], [1, 2, 3]) == ([20, 40, 40, 60, 60], [1, 1, 2, 2, 3])
    assert stairs([20], [1]) == ([20], [1])


def test_a_run_without_a_score_has_no_curves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Made(tmp_path / "run")
    made.row("a cat", None, explanation="the model said nothing")
    assert run_main(made.write(), "--report", "--curves", "--table", "--top_k", 1) == 0
    assert "nothing was scored" in capsys.readouterr().err
    assert not (made.folder / "curves.png").exists()


def test_the_best_k_come_first_and_once_each(tmp_path: Path) -> None:
    made = Made(tmp_path / "run")
    for score in (1.0, 4.0, None, 3.0, 2.0):
        made.row("a cat", score)
    made.rows.append(made.rows[0] | {"id": 9, "score": 3.5})  # scored again
    made.row("a cat", 9.0, step=10, path=None)
    (run,) = told([read_run(made.write())])
    assert [each.score for each in top(run.run.searched[0], 3)] == [4, 3.5, 3]
    (picture,) = top_pictures(run, 9)
    assert [tile.label for tile in picture.tiles] == ["4.00", "3.50", "3.00", "2.00"]
    assert [tile.framed for tile in picture.tiles] == [True, False, False, False]
    assert run_main(made.folder, "--top_k", 3) == 0
    with Image.open(made.folder / "top_a_cat_3.png") as drawn:
        assert 3 * 48 < drawn.width < 3 * 48 + 40


# Flags.


def test_collages_are_made_as_ever_and_only_where_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = graded_run(tmp_path / "run")
    assert run_main(folder, "--report") == 0
    assert not list(folder.glob("collage_*"))
    assert run_main(folder) == 0
    assert len(list(folder.glob("collage_*"))) == 6
    assert run_main(folder, "--report", "--per_round") == 0
    assert list(folder.glob("round_*"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--report"], "--output"),
        (["--table", "--curves"], "--output"),
        (["--top_k", "-1"], "--top_k"),
        (["--report", "--output", "OUT", "--features", "x"], "--table"),
        (["--table", "--output", "OUT", "--statistics", "x"], "--features"),
        (["--table", "--output", "FILE"], "is a file: give a folder"),
    ],
)
def test_wrong_flags_are_refused_with_the_remedy(
    tmp_path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [graded_run(tmp_path / "one"), graded_run(tmp_path / "two")]
    (tmp_path / "file").write_text("")
    places = {"OUT": str(tmp_path / "out"), "FILE": str(tmp_path / "file")}
    assert run_main(*runs, *(places.get(flag, flag) for flag in flags)) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert said in message


def test_no_deep_learning_library_is_imported() -> None:
    code = (
        "import sys, experiment.report_views, experiment.report, experiment.report_table\n"
        "import experiment.report_curves, experiment.top_k\n"
        "sys.exit(bool({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# Feature models.


def test_features_tell_how_varied_winners_are(tmp_path: Path) -> None:
    import torch

    from experiment.report_features import diversity, inception_score

    features = torch.tensor(np.random.default_rng(0).normal(size=(7, 5)))
    unit = features / features.norm(dim=1, keepdim=True)
    apart = [1 - float(unit[i] @ unit[j]) for i in range(7) for j in range(i)]
    assert diversity(features) == pytest.approx(np.mean(apart))
    assert diversity(features[:1].repeat(3, 1)) == pytest.approx(0)
    assert inception_score(torch.eye(4)) == pytest.approx(4)  # sure, and each of another class
    assert inception_score(torch.full((6, 4), 0.25)) == pytest.approx(1)


def test_features_of_a_local_model_reach_the_tables(tmp_path: Path) -> None:
    folder = graded_run(tmp_path / "run")
    checkpoint = ROOT / "shapes" / "models" / "shapes-clip"
    assert run_main(folder, "--table", "--features", checkpoint) == 0
    rows = list(csv.DictReader((folder / "table.csv").open()))
    (row,) = (row for row in rows if row["quantity"] == "diversity")
    assert 0 < float(row["value"]) < 2 and row["prompts"] == "6"
    assert "## Winners under shapes-clip" in (folder / "table.md").read_text()

    # The distance to statistics of the very same images is none.
    from verifiers.features import Seen, VisionModel

    model = VisionModel(str(checkpoint), batch_size=8, dtype="fp32", device="cpu", classifies=False)
    (run,) = told([read_run(folder)])
    images = [Image.open(folder / str(each.best.path)) for each in run.run.searched if each.best]
    seen = [s.features.double().numpy() for s in model.see(images) if isinstance(s, Seen)]
    statistics = tmp_path / "real.npz"
    flags = ["--table", "--features", checkpoint, "--statistics", statistics]
    for shift in (0.0, 3.0):
        np.savez(statistics, mu=np.mean(seen, 0) + shift, sigma=np.cov(np.array(seen).T))
        assert run_main(folder, *flags) == 0
        rows = list(csv.DictReader((folder / "table.csv").open()))
        (row,) = (row for row in rows if row["quantity"] == "fid")
        expected = model.width * shift**2
        assert float(row["value"]) == pytest.approx(expected, rel=1e-3, abs=1e-2)
    np.savez(statistics, mu=np.zeros(model.width + 1), sigma=np.eye(model.width + 1))
    assert run_main(folder, *flags) == 2
