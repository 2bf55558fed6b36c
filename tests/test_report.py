"""The page, the curves, the tables and the best images that are made of runs."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

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
from process_results import main
from utils import ROOT, UserError, prompt_stem

HOSTILE = '</script><script>alert(1)</script> "a" & <img src=x onerror=alert(2)> \u2028 \ud83d'
PROMPTS = ("a red circle", HOSTILE, "a cat", "a dog", "a robot", "a boat")


class Made:
    """A run folder written row by row, as a run does it."""

    def __init__(self, folder: Path, method: str = "random", metric: str = "overall_score") -> None:
        folder.mkdir(parents=True)
        self.folder, self.metric = folder, metric
        self.rows: list[dict[str, Any]] = []
        config = {
            "pretrained_model_name_or_path": "models/tiny",
            "verifier_args": {"name": "grader", "choice_of_metric": metric},
            "search_args": {"search_method": method},
        }
        (folder / "config.json").write_text(json.dumps(config))

    def row(self, prompt: str, score: float | None, **fields: Any) -> dict[str, Any]:
        """A finished candidate with its image, unless the fields say otherwise."""
        index = PROMPTS.index(prompt)
        number = sum(row["prompt_index"] == index for row in self.rows)
        row = {
            "id": number, "prompt": prompt, "prompt_index": index, "round": 1, "step": 20,
            "steps": 20, "seed": 1000 * index + number, "recipe": {"op": "draw", "index": number},
            "parents": [], "status": "unscored" if score is None else "ok", "score": score,
            "scores": {"grader": {self.metric: score, "realism": 2.0}} if score else {},
            "judges": {}, "explanation": "", "details": {}, "guidance": 1.0, "draft": False,
            "nfe": 20, "rows": 40, "batch_size": 2, "seconds": 0.5, "path": "",
        } | fields  # fmt: skip
        if row["path"] == "":
            row["path"] = f"{prompt_stem(prompt)}_i@{row['round']}_s@{row['seed']}.png"
            color = (37 * number % 256, 60 * index % 256, 99)
            Image.new("RGB", (48, 48), color).save(self.folder / row["path"])
        self.rows.append(row)
        return row

    def write(self) -> Path:
        """The rows, and for each round of a prompt its winner's record."""
        text = "".join(json.dumps(row) + "\n" for row in self.rows)
        (self.folder / "candidates.jsonl").write_text(text)
        rounds: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for row in self.rows:
            if row["path"] and row["score"] is not None:
                rounds.setdefault((row["prompt_index"], row["round"]), []).append(row)
        for (_, number), own in rounds.items():
            won = max(own, key=lambda row: float(row["score"]))
            record = {
                "prompt": won["prompt"], "search_round": number, "num_noises": len(own),
                "best_noise_seed": won["seed"], "choice_of_metric": self.metric,
                "best_score": {"explanation": won["explanation"], "score": won["score"]},
                "best_img_path": "gone", "best_id": won["id"], "judges": won["judges"],
            }  # fmt: skip
            (self.folder / won["path"]).with_suffix(".json").write_text(json.dumps(record))
        return self.folder


def categorised(folder: Path) -> Path:
    """Two prompts of one category, one of another, one of none."""
    made = Made(folder)
    for prompt, category, score in (
        ("a red circle", "shapes", 1.0),
        ("a boat", "shapes", 2.0),
        ("a cat", "animals", 5.0),
        ("a dog", None, 7.0),
    ):
        made.row(prompt, score, category=category)
    return made.write()


def graded_run(folder: Path, shift: float = 0.0, method: str = "random") -> Path:
    """Six prompts of three rounds; the judge goes with the verifier but for the last prompt."""
    made = Made(folder, method)
    rng = np.random.default_rng(7)
    for at, prompt in enumerate(PROMPTS):
        scores = np.sort(rng.uniform(1, 5, size=6)) + at + shift
        for i in (3, 0, 5, 1, 4, 2):
            judged = {"clip": {"clip_score": 0.1 if prompt == PROMPTS[-1] else 0.2 + 0.1 * at}}
            made.row(
                prompt,
                float(scores[i]),
                round=1 + i % 3,
                judges=judged if i == 5 else {},
                explanation=f"{HOSTILE} says {i}",
            )
        made.row(prompt, None, round=3, status="blocked", explanation="SAFETY <b>bold</b>")
    return made.write()


class Page(HTMLParser):
    """What of a page is markup, and its JSON."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, Any] = {}
        self._id: str | None = None
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._id = dict(attrs).get("id") if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._id:
            self.data[self._id] = json.loads(data)
            self._id = None


def run_main(*arguments: object) -> int:
    return main(["--path", *map(str, arguments)])


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
    assert "**+0.5 [+0.5, +0.5]**" in text and "| 1 [1, 1] |" in text
    assert "<script" not in text


def test_the_curves_are_a_picture(tmp_path: Path) -> None:
    runs = [graded_run(tmp_path / "a$b$"), graded_run(tmp_path / "two", 0.5)]
    assert run_main(*runs, "--curves", "--output", tmp_path / "out") == 0
    with Image.open(tmp_path / "out" / "curves.png") as picture:
        assert picture.width > 1000 and picture.height > 800  # two panels by two


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


# In a browser.


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable",
            "chromium-headless-shell")  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        api = import_module("playwright.sync_api")
    except ImportError:
        pytest.skip("Playwright is not installed: pip install playwright")
    with api.sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, BROWSERS)), None)
        try:
            chromium = playwright.chromium.launch(executable_path=path)
        except api.Error:
            pytest.skip("No Chromium is installed: playwright install chromium")
        yield chromium
        chromium.close()


def lineage_run(folder: Path) -> Path:
    """A winner that comes from two earlier images, these from a draw."""
    made = Made(folder, "zero-order")
    for prompt in PROMPTS:
        made.row(prompt, 1.0)
        made.row(prompt, 2.0, parents=[0], recipe={"op": "perturb", "of": 0, "cosine": 0.9})
        made.row(prompt, 2.5, parents=[0], recipe={"op": "perturb", "of": 0, "cosine": 0.9})
        made.row(prompt, 9.0, parents=[1, 2], round=2, recipe={"op": "perturb", "of": 1})
        made.row(prompt, 0.5, step=10, path=None, guidance=1.5)
    return made.write()


def opened(browser: Any, page: Path, width: int) -> tuple[Any, list[str]]:
    """A tab with the page, and all that goes wrong in it."""
    tab = browser.new_page(viewport={"width": width, "height": 900})
    wrong: list[str] = []
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("dialog", lambda dialog: wrong.extend([dialog.message] * (dialog.dismiss() is None)))
    tab.on("request", lambda request: wrong.extend([request.url] * ("http" in request.url)))
    tab.goto(page.as_uri())
    return tab, wrong


def until(found: Any, script: str) -> None:
    """Wait until a function of an element holds; the page's policy forbids Playwright's own way."""
    ends = time.monotonic() + 10
    while not found.evaluate(script):
        assert time.monotonic() < ends, script
        time.sleep(0.02)


def texts(found: Any) -> list[str]:
    """Of hidden ones too: what is out of view is not laid out."""
    return [text.strip() for text in found.all_text_contents()]


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(browser: Any, tmp_path: Path, width: int) -> None:
    runs: Sequence[Path] = [graded_run(tmp_path / "one"), lineage_run(tmp_path / "two")]
    assert run_main(*runs, "--report", "--output", tmp_path / "out") == 0
    tab, wrong = opened(browser, tmp_path / "out" / "report.html", width)
    assert tab.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out

    # Both runs are compared.
    first, second = told(list(map(read_run, runs)))
    found = pair(second, first, "overall_score")
    assert found is not None
    compared = tab.locator("#pairs tbody tr").first.text_content()
    assert "zero-order" in compared and f"{found.wins.mean:.0%}".replace("%", " %") in compared
    tab.locator("#curves svg .curve").nth(1).wait_for()

    # Prompts are sorted, filtered and found.
    listed = tab.locator("#list > .prompt > summary b")
    assert texts(listed)[0] == PROMPTS[0]
    tab.get_by_label("sort prompts").select_option("overall_score of random down")
    assert texts(listed)[0] == PROMPTS[-1]
    tab.get_by_label("show", exact=True).select_option("fooled")
    assert texts(listed) == [PROMPTS[-1]]
    tab.get_by_label("show", exact=True).select_option("all")
    tab.get_by_label("find in prompts").fill("cat")
    assert texts(listed) == ["a cat"]

    # A prompt is built when it is opened; its winners are framed.
    assert tab.locator(".detail").count() == 0
    tab.locator(".prompt > summary").click()
    tab.locator(".detail").wait_for()
    assert tab.locator(".strip .won").count() == 2
    tab.locator(".detail svg .curve").nth(1).wait_for()

    # Candidates are sorted by any metric, and filtered.
    table = tab.locator(".candidates tbody")
    column = tab.locator(".candidates th", has_text="overall_score")
    column.get_by_role("button").click()
    assert column.get_attribute("aria-sort") == "descending"
    scores = [float(text) for text in texts(table.locator("td:nth-child(5)")) if text != "–"]
    assert scores == sorted(scores, reverse=True) and len(scores) == 6
    assert texts(table.locator("td:nth-child(5)"))[-1] == "–"
    assert tab.evaluate("document.activeElement.dataset.key") == "overall_score"
    tab.keyboard.press("Enter")
    assert column.get_attribute("aria-sort") == "ascending"
    assert texts(table.locator("td:nth-child(5)"))[-1] == "–"  # what has none stays last
    tab.get_by_role("button", name="without a score 1").click()
    assert table.locator("tr").count() == 1 and "blocked" in table.inner_text()

    # Explanations, by keyboard.
    table.locator("td.why button").focus()
    assert tab.locator("#tip").inner_text() == "SAFETY <b>bold</b>"
    tab.keyboard.press("Escape")
    assert tab.locator("#tip").is_hidden()

    # The other run's winner comes from a draw by way of two images.
    tab.locator(".candidates").get_by_role("button", name="zero-order").click()
    tab.get_by_role("button", name="previews 1").click()
    assert "×1.50" in table.inner_text()
    tab.get_by_role("button", name="Where the winner comes from").nth(1).click()
    stages = tab.locator("#lineage .stage")
    assert stages.count() == 3
    assert [stages.nth(i).locator(".node").count() for i in range(3)] == [1, 2, 1]
    assert "fresh noise" in stages.nth(0).inner_text()
    assert "perturb from #1, #2" in stages.nth(2).inner_text()
    tab.keyboard.press("Escape")
    assert not tab.locator("#lineage").is_visible()

    # Hostile text is only text, and no image was refused.
    tab.get_by_label("find in prompts").fill("script")
    assert tab.locator(".prompt > summary b").text_content() == HOSTILE
    tab.locator(".prompt > summary").click()
    tab.locator(".candidates img").first.scroll_into_view_if_needed()
    tab.wait_for_timeout(300)
    loaded = "[...document.images].filter(i => i.complete).every(i => i.naturalWidth > 0)"
    assert tab.evaluate(loaded) and tab.locator(".candidates img").count() > 0
    assert wrong == []
    tab.close()


@pytest.mark.slow
def test_videos_play_in_the_page_or_are_linked(browser: Any, tmp_path: Path) -> None:
    from experiment.video import mp4_bytes

    made = Made(tmp_path / "run")
    colors = ((250, 20, 20), (20, 20, 250))
    for number, color in enumerate(colors):
        name = f"{prompt_stem('a cat')}_i@1_s@{number}.mp4"
        made.row("a cat", 1.0 + number, seed=number, path=name)
        frames = [Image.new("RGB", (64, 64), color) for _ in range(8)]
        (made.folder / name).write_bytes(mp4_bytes(frames, 8))
    broken = f"{prompt_stem('a cat')}_i@1_s@9.mp4"
    made.row("a cat", 0.5, seed=9, path=broken)
    (made.folder / broken).write_bytes(b"no video")
    assert run_main(made.write(), "--report") == 0
    tab, wrong = opened(browser, made.folder / "report.html", 1280)
    tab.locator(".prompt > summary").click()
    rows = tab.locator(".candidates tbody tr")
    hrefs = [rows.nth(i).locator("a.picture").get_attribute("href") for i in range(3)]
    assert [unquote(str(href)) for href in hrefs] == [row["path"] for row in made.rows]
    plays = "document.createElement('video').canPlayType('video/mp4; codecs=\"avc1.64001f\"')"
    if not tab.evaluate(plays):  # a Chromium without H.264
        assert tab.locator("video").count() == 0
        assert tab.locator(".strip a.picture img").count() == 1  # the winner's thumbnail
        tab.close()
        return
    rows.last.scroll_into_view_if_needed()
    until(rows.first, "r => r.parentElement.querySelectorAll('video').length === 2")
    winner = tab.locator(".strip video")
    assert winner.get_attribute("poster").startswith("data:image/webp")
    small = rows.nth(0).locator("video")
    until(small, "v => v.readyState >= 1")
    assert small.evaluate("v => [v.videoWidth, v.videoHeight, v.duration]") == [64, 64, 1.0]
    small.hover()
    until(small, "v => !v.paused && v.currentTime > 0.1")
    tab.mouse.move(0, 0)
    until(small, "v => v.paused")
    winner.evaluate("v => v.play()")
    until(winner, "v => v.currentTime > 0.2")
    assert wrong == []
    tab.close()


@pytest.mark.slow
def test_lineages_come_to_an_end(browser: Any, tmp_path: Path) -> None:
    """Rows that were damaged may be missing, or name each other as parents."""
    made = Made(tmp_path / "run")
    made.row("a cat", 1.0, parents=[2])
    made.row("a cat", 2.0, parents=[77])
    made.row("a cat", 3.0, parents=[0, 1])
    assert run_main(made.write(), "--report") == 0
    tab, wrong = opened(browser, made.folder / "report.html", 1280)
    tab.locator(".prompt > summary").click()
    tab.get_by_role("button", name="Where the winner comes from").click()
    assert tab.locator("#lineage .node").count() == 3
    assert "Not recorded: #77" in tab.locator("#lineage").inner_text()
    assert wrong == []
    tab.close()


@pytest.mark.slow
def test_prompts_are_filtered_by_category(browser: Any, tmp_path: Path) -> None:
    assert run_main(categorised(tmp_path / "run"), "--report") == 0
    tab, wrong = opened(browser, tmp_path / "run" / "report.html", 1280)
    rows = [texts(row.locator("td")) for row in tab.locator("#categories tbody tr").all()]
    assert [row[:3] for row in rows] == [["shapes", "2", "1.50"], ["animals", "1", "5.00"]]
    tab.get_by_label("show", exact=True).select_option("category animals")
    assert texts(tab.locator("#list > .prompt > summary b")) == ["a cat"]
    assert wrong == []
    tab.close()


@pytest.mark.slow
def test_a_thousand_prompts_are_painted_within_three_seconds(browser: Any, tmp_path: Path) -> None:
    from benchmarks.report import make_run

    (tmp_path / "run").mkdir()
    make_run(tmp_path / "run", prompts=1000, candidates=30, size=32)
    assert run_main(tmp_path / "run", "--report") == 0
    tab, wrong = opened(browser, tmp_path / "run" / "report.html", 1280)
    tab.wait_for_selector("#list > .prompt:nth-child(1000)", state="attached")
    tab.wait_for_timeout(300)
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    assert tab.evaluate(paint) < 3000
    tab.locator("#list > .prompt:nth-child(1000)").scroll_into_view_if_needed()
    tab.locator("#list > .prompt:nth-child(1000) .thumbs img").wait_for()
    # Pictures of prompts that nobody has seen are not made.
    assert tab.locator(".thumbs img").count() < 200
    assert wrong == []
    tab.close()
