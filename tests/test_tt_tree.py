"""tt-scale-flux's own output tree: no rows, scores as numbers or with an explanation."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiment.report_measures import IMAGES, best_so_far, told
from experiment.report_read import read_run
from experiment.report_run import UNRECORDED
from experiment.top_k import top
from process_results import main
from utils import digest, slug

PROMPTS = ("a tiny astronaut hatching from an egg", "a cat, on the moon")


def write_tree(folder: Path, *, graded: bool, rounds: int = 3, better: float = 0.0) -> Path:
    """As tt-scale-flux's `main.py` writes it: round r draws 2**r noises."""
    folder.mkdir(parents=True)
    config = {
        "torch_dtype": "bf16",
        "verifier_args": {"name": "gemini", "choice_of_metric": "overall_score"},
        "search_args": {"search_method": "random", "search_rounds": rounds},
    }
    (folder / "config.json").write_text(json.dumps(config))
    for at, prompt in enumerate(PROMPTS):
        for number in range(1, rounds + 1):
            seeds = [10_000 * at + 100 * number + i for i in range(2**number)]
            stem = f"prompt@{slug(prompt)}_hash@{digest(prompt)[:8]}_i@{number}_s@"
            for seed in seeds:
                color = (seed % 256, 90, 40 * number)
                Image.new("RGB", (64, 64), color).save(folder / f"{stem}{seed}.png")
            score = 5 + at + [0.1, 0.9, 0.4][number - 1] + better
            record: dict[str, Any] = {
                "prompt": prompt, "search_round": number, "num_noises": len(seeds),
                "best_noise_seed": seeds[1], "choice_of_metric": "overall_score",
                "best_score": {"explanation": "sharp", "score": score} if graded else score,
                "best_img_path": f"output/elsewhere/{stem}{seeds[1]}.png",
            }  # fmt: skip
            (folder / f"{stem}{seeds[1]}.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize("graded", [True, False])
def test_a_tree_is_read_by_its_file_names_and_records(tmp_path: Path, graded: bool) -> None:
    (run,) = told([read_run(write_tree(tmp_path / "run", graded=graded))])
    assert run.run.left_out == ()
    assert {each.text for each in run.run.searched} == set(PROMPTS)
    each = run.run.by_key[PROMPTS[0], 0]
    assert len(each.candidates) == 2 + 4 + 8
    assert [r.number for r in each.rounds] == [1, 2, 3]
    assert each.best is not None and each.best.score == 5.9 and each.best.seed == 201
    assert each.best.explanation == ("sharp" if graded else "")
    statuses = [candidate.status for candidate in each.candidates]
    assert statuses.count("ok") == 3 and statuses.count(UNRECORDED) == 11
    assert run.metric == "overall_score" and not run.failures
    # Neither steps nor time are on record; images are counted.
    assert run.costs == (IMAGES,)
    assert best_so_far(each, IMAGES) == [(2, 5.1), (4, 5.9), (14, 5.9)]


def test_all_that_is_made_of_a_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tree(tmp_path / "run", graded=True)
    command = ["--path", str(folder), "--report", "--curves", "--table", "--top_k", "2"]
    assert main(command) == 0
    shown, warned = capsys.readouterr()
    assert warned == ""
    made = [Path(line).name for line in shown.split()]
    assert made[:4] == ["report.html", "curves.png", "table.csv", "table.md"]
    assert len(made) == 6 and all(re.fullmatch(r"top_\w+_2\.png", name) for name in made[4:])
    with Image.open(folder / made[4]) as picture:
        assert 2 * 64 < picture.width < 2 * 64 + 40
    # What was made is no part of the run when it is read again.
    assert main(command) == 0
    assert capsys.readouterr().err == ""


def test_only_winners_can_be_ranked(tmp_path: Path) -> None:
    run = read_run(write_tree(tmp_path / "run", graded=False))
    each = run.by_key[PROMPTS[1], 0]
    assert [candidate.score for candidate in top(each, 9)] == [6.9, 6.4, 6.1]


def test_two_trees_are_paired_by_prompt(tmp_path: Path) -> None:
    one = write_tree(tmp_path / "20260101_000000", graded=True)
    two = write_tree(tmp_path / "20260102_000000", graded=False, better=0.25)
    output = tmp_path / "out"
    command = ["--path", str(one), str(two), "--table", "--report", "--output", str(output)]
    assert main(command) == 0
    rows = list(csv.DictReader((output / "table.csv").open()))
    (gap,) = (row for row in rows if row["quantity"] == "difference")
    assert (gap["run"], gap["against"]) == ("20260102_000000", "20260101_000000")
    assert float(gap["value"]) == pytest.approx(0.25) and gap["prompts"] == "2"
    (wins,) = (row for row in rows if row["quantity"] == "win_rate")
    assert float(wins["value"]) == 1
    assert '"folder":"../20260101_000000/"' in (output / "report.html").read_text()


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"best_score": {"score": [3]}}'])
def test_a_damaged_record_costs_its_round_only(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tree(tmp_path / "run", graded=True)
    record = next(iter(sorted(folder.glob("*_i@2_*.json"))))
    record.write_text(content)
    assert main(["--path", str(folder), "--report", "--table", "--curves", "--top_k", "3"]) == 0
    damaged = not content.startswith('{"best')
    assert (record.name in capsys.readouterr().err) == damaged
    assert len([each for each in read_run(folder).searched if each.best]) == 2


def test_a_damaged_tree_gives_collage_curve_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is damaged, missing, half-written or foreign is skipped, counted and named."""
    folder = write_tree(tmp_path / "run", graded=True)
    first, second, _ = sorted(folder.glob(f"prompt@{slug(PROMPTS[0])}_*.json"))
    *_, third = sorted(folder.glob(f"prompt@{slug(PROMPTS[1])}_*.json"))
    first.write_text(first.read_text()[:-30])  # half-written
    second.with_suffix(".png").unlink()
    third.with_suffix(".png").write_bytes(third.with_suffix(".png").read_bytes()[:60])
    (folder / "notes.txt").write_text("mine")
    (folder / "wandb.json").write_text("[]")

    assert main(["--path", str(folder), "--report", "--curves", "--table"]) == 0
    shown, warned = capsys.readouterr()
    assert [Path(line).name for line in shown.split()] == [
        "report.html", "curves.png", "table.csv", "table.md"
    ]  # fmt: skip
    page = (folder / "report.html").read_text()
    named = (first.name, second.with_suffix(".png").name, "notes.txt", "wandb.json")
    for name in named:
        assert name in warned and name in page
    assert f"{len(named)} left out of {folder}" in warned

    assert main(["--path", str(folder)]) == 0
    shown, warned = capsys.readouterr()
    pictures = [Path(line) for line in shown.split()]
    assert len(pictures) == len(PROMPTS)
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
    for name in (first.name, second.with_suffix(".png").name, third.with_suffix(".png").name):
        assert warned.count(name) >= 1
