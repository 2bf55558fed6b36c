"""The paper-style table, from comparisons' folders written by hand."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiment.statistics import bootstrap, wilson
from process_results import main
from tests.made_runs import PROMPTS as RUN_PROMPTS
from tests.made_runs import Made
from utils import path_part

PROMPTS = ("a cat", "a dog", "a boat", "a tree", *(f"{n} birds" for n in range(2, 10)))
STEPS = 20


def compared(
    folder: Path,
    verifier: str,
    scores: dict[str, dict[int, dict[str, list[float | None]]]],
    model: str = "tiny",
    seed: int = 0,
) -> Path:
    """A comparison's folder. scores: by method, budget and metric, one for each prompt."""
    for method, by_budget in scores.items():
        for budget, by_metric in by_budget.items():
            run = folder / path_part(method) / f"nfe{budget}_s{seed}"
            run.mkdir(parents=True)
            config = {
                "pretrained_model_name_or_path": model,
                "pipeline_call_args": {"num_inference_steps": STEPS},
                "verifier_args": {"name": verifier},
                "search_args": {"search_method": method.split()[0]},
            }
            (run / "config.json").write_text(json.dumps(config))
            lines = []
            for index, prompt in enumerate(PROMPTS[: len(next(iter(by_metric.values())))]):
                own = {metric: values[index] for metric, values in by_metric.items()}
                winner = {"budget": budget, "nfe": float(budget), "rows": budget, "seconds": 1.0,
                          "images": budget // STEPS, "path": "x.png", "scores": own,
                          "ceilings": {}}  # fmt: skip
                lines.append(json.dumps({"prompt_index": index, "prompt": prompt, "stem": "x",
                                         "summary": {}, "winners": [winner]}))  # fmt: skip
            (run / "winners.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def by_clip(tmp_path: Path) -> Path:
    """With the comparison's own table, which knows the methods by their names and in order."""
    (tmp_path / "by_clip").mkdir()
    table = {"methods": ["random", "ses wide"], "metrics": ["clip", "taste"]}
    (tmp_path / "by_clip" / "table.json").write_text(json.dumps(table))
    return compared(
        tmp_path / "by_clip",
        "clip",
        {
            "random": {
                20: {"clip": [0.1, 0.2, 0.3, 0.4], "taste": [5.0, 5.0, 6.0, 6.0]},
                80: {"clip": [0.3, 0.4, 0.5, 0.6], "taste": [5.0, 6.0, 6.0, 6.0]},
            },
            "ses wide": {
                20: {"clip": [0.1, 0.2, 0.3, 0.4], "taste": [5.0, 5.0, 6.0, 6.0]},
                80: {"clip": [0.4, 0.5, 0.6, 0.7], "taste": [4.0, 5.0, 5.0, None]},
            },
        },
    )


def rows_of(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    with open(folder / "paper_table.csv", newline="") as file:
        return {(row["verifier"], row["method"]): row for row in csv.DictReader(file)}


def written(*folders: Path, output: Path, flags: tuple[str, ...] = ()) -> int:
    paths = ["--path", *map(str, folders)]
    return main([*paths, "--paper_table", "--output", str(output), *flags])


def test_rows_are_verifiers_and_methods_and_the_best_of_a_column_is_bold(
    by_clip: Path, tmp_path: Path
) -> None:
    by_taste = compared(
        tmp_path / "by_taste",
        "laion_aesthetic",
        {"random": {80: {"taste": [7.0, 8.0, 8.0], "clip": [0.2, 0.2, 0.3]}}},
    )
    assert written(by_clip, by_taste, output=tmp_path / "out") == 0
    rows = rows_of(tmp_path / "out")
    assert list(rows) == [
        ("", "no search"), ("clip", "random"), ("clip", "ses wide"), ("laion_aesthetic", "random"),
    ]  # fmt: skip
    # Over the three prompts that both comparisons have done.
    for key, values in {
        ("", "no search"): [0.1, 0.2, 0.3],
        ("clip", "random"): [0.3, 0.4, 0.5],
        ("laion_aesthetic", "random"): [0.2, 0.2, 0.3],
    }.items():
        assert float(rows[key]["clip"]) == pytest.approx(np.mean(values))
        assert rows[key]["clip_low"] == rows[key]["clip_high"] == ""  # of three prompts
    assert rows["", "no search"]["nfe"] == "20" and rows["clip", "random"]["nfe"] == "80"

    text = (tmp_path / "out" / "paper_table.md").read_text()
    assert "# 80 NFE per prompt" in text and "3 prompts. No intervals" in text
    bold = [line for line in text.splitlines() if "**" in line]
    assert len(bold) == 2
    assert bold[0].startswith("| clip | ses wide |") and "**0.5†**" in bold[0]
    assert bold[1].startswith("| laion_aesthetic | random |") and "**7.67†**" in bold[1]

    tex = (tmp_path / "out" / "paper_table.tex").read_text()
    assert r"laion\_aesthetic & random & 80.0 &" in tex
    assert r"\textbf{0.5$^\dagger$}" in tex
    assert tex.count(r"\\") == 1 + len(rows) and tex.count(r"\midrule") == 3


def test_a_missing_score_takes_its_prompt_out_of_its_column_only(
    by_clip: Path, tmp_path: Path
) -> None:
    assert written(by_clip, output=tmp_path) == 0
    rows = rows_of(tmp_path)
    assert rows["clip", "random"]["clip_prompts"] == "4"
    assert rows["clip", "random"]["taste_prompts"] == "3"
    assert float(rows["clip", "random"]["taste"]) == pytest.approx(17 / 3)
    assert "4 prompts; for `taste` 3." in (tmp_path / "paper_table.md").read_text()


def test_a_budget_can_be_asked_for(
    by_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert written(by_clip, output=tmp_path, flags=("--budget", "20")) == 0
    assert float(rows_of(tmp_path)["clip", "ses wide"]["clip"]) == pytest.approx(0.25)
    assert written(by_clip, output=tmp_path, flags=("--budget", "40")) == 2
    assert "give one of [20, 80]" in capsys.readouterr().err


def test_the_first_image_on_record_is_the_baseline_where_no_budget_is_a_single_one(
    tmp_path: Path,
) -> None:
    folder = compared(tmp_path / "c", "clip", {"random": {80: {"clip": [0.5, 0.6]}}})
    rows: list[dict[str, Any]] = [
        {"id": number, "prompt": prompt, "prompt_index": index, "round": 1, "step": STEPS,
         "steps": STEPS, "seed": 1, "recipe": {"op": "draw", "index": number}, "status": "ok",
         "score": 0.1 + 0.2 * index + number, "nfe": STEPS}
        for index, prompt in enumerate(PROMPTS[:2])
        for number in range(2)
    ]  # fmt: skip
    run = folder / "random" / "nfe80_s0"
    (run / "candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["--path", str(folder), "--paper_table"]) == 0
    assert float(rows_of(folder)["", "no search"]["clip"]) == pytest.approx(0.2)


def test_seeds_are_averaged_within_a_prompt(tmp_path: Path) -> None:
    first, second = [n / 20 for n in range(12)], [n / 10 for n in range(12)]
    right = [1.0] * 9 + [0.0] * 3
    scores = (
        {"random": {80: {"clip": first, "right": right}}},
        {"random": {80: {"clip": second, "right": right[::-1]}}},
    )
    for seed, each in enumerate(scores):
        compared(tmp_path / "c", "clip", each, seed=seed)
    assert main(["--path", str(tmp_path / "c"), "--paper_table"]) == 0
    row = rows_of(tmp_path / "c")["clip", "random"]
    for metric, expected in (
        ("clip", bootstrap([n * 0.075 for n in range(12)])),
        ("right", wilson([1.0] * 9 + [0.0] * 3)),  # a share, of 12 prompts
    ):
        assert [float(row[f"{metric}{end}"]) for end in ("", "_low", "_high")] == pytest.approx(
            [expected.mean, expected.low, expected.high]
        )
    text = (tmp_path / "c" / "paper_table.md").read_text()
    assert "2 seeds" in text and "Wilson's for shares (`right`), else by bootstrap" in text
    assert r"{\scriptsize [" in (tmp_path / "c" / "paper_table.tex").read_text()


def test_what_makes_no_table_is_said(
    by_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = compared(tmp_path / "o", "clip", {"random": {80: {"clip": [0.5]}}}, model="large")
    apart = compared(tmp_path / "a", "clip", {"random": {40: {"clip": [0.5]}}})
    (tmp_path / "none").mkdir()
    for folders, sentence in (
        ((by_clip, other), "other models"),
        ((by_clip, apart), "No prompt is done by all methods"),
        ((tmp_path / "none",), "There is no comparison in"),
    ):
        assert written(*folders, output=tmp_path / "out") == 2
        assert sentence in capsys.readouterr().err
    assert main(["--path", str(by_clip), "--table", "--budget", "20"]) == 2


def test_damaged_lines_are_named_and_left_out(
    by_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = by_clip / "random" / "nfe80_s0" / "winners.jsonl"
    path.write_text(path.read_text()[:-40] + "\n")
    assert written(by_clip, output=tmp_path) == 0
    assert f"line 4 of {path} is damaged" in capsys.readouterr().err
    assert rows_of(tmp_path)["clip", "random"]["clip_prompts"] == "3"


def test_a_comparisons_folder_stands_for_its_runs_at_the_largest_budget(
    by_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that one command makes page, curves and all tables."""
    for method, metric in (("random", 0.5), ("ses_wide", 0.7)):
        run = by_clip / method / "nfe80_s0"
        config = json.loads((run / "config.json").read_text())
        shutil.rmtree(run)
        made = Made(run, metric="clip")
        for prompt in (RUN_PROMPTS[0], RUN_PROMPTS[2]):
            made.row(prompt, metric)
        made.write()
        (run / "config.json").write_text(json.dumps(config))
    budgets: dict[int, dict[str, list[float | None]]] = {80: {"clip": [0.5, 0.7]}}
    again = compared(tmp_path / "again", "clip", {"random": budgets, "ses wide": budgets})
    for method in ("random", "ses_wide"):
        winners = f"{method}/nfe80_s0/winners.jsonl"
        shutil.copy(again / winners, by_clip / winners)
    views = ("--report", "--table", "--curves")
    assert written(by_clip, output=tmp_path / "out", flags=views) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.html", "table.csv", "table.md", "curves.png",
        "paper_table.md", "paper_table.csv", "paper_table.tex",
    }  # fmt: skip
    with open(tmp_path / "out" / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    means = [(row["run"], float(row["value"])) for row in rows
             if row["quantity"] == "winner" and row["metric"] == "clip"]  # fmt: skip
    assert means == [("random", 0.5), ("ses", 0.7)]
    assert not capsys.readouterr().err
