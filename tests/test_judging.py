"""Judges asked after the fact: of runs, comparisons and benchmarks' folders, local and by API."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiment import judging
from experiment.late_judges import JUDGED
from experiment.report_read import read_run
from process_results import main
from shapes.oracle import judge
from tests.fake_api import FakeApi, Reply, grading
from tests.fickle import Fickle
from tests.test_export import Run as ExportRun
from tests.test_paper_table import PROMPTS as COMPARED
from tests.test_paper_table import compared, rows_of
from tests.test_report import Made
from tests.test_tt_tree import write_tree
from tests.tiny_vlm import save_qwen2_5
from verifiers import build_verifier
from verifiers.base import Item

BRIGHTNESS = "tests.graders:Brightness"
COLORS = {"a red circle": "red", "a cat": "grey", "a dog": "white"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three prompts; each one's winner is of its own color, and the loser beside it black."""
    return colored(tmp_path / "run")


def colored(folder: Path) -> Path:
    made = Made(folder)
    for prompt, color in COLORS.items():
        for score, shown in ((1.0, "black"), (2.0, color)):
            row = made.row(prompt, score)
            Image.new("RGB", (48, 48), shown).save(folder / row["path"])
    return made.write()


def command(*arguments: object) -> int:
    return main(["--path", *map(str, arguments)])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / JUDGED).read_text().splitlines()]


def means(folder: Path) -> dict[tuple[str, str], tuple[float, str]]:
    """By run and metric the mean over winners, and how many they are, as the table has it."""
    with open(folder / "table.csv", newline="") as file:
        return {
            (row["run"], row["metric"]): (float(row["value"]), row["prompts"])
            for row in csv.DictReader(file)
            if row["quantity"] == "winner" and not row["category"]
        }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != JUDGED}


def test_vqa_scores_a_finished_runs_winners_and_becomes_a_judges_column(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(save_qwen2_5(tmp_path / "vlm"))
    before = contents(run)
    options = ("--set", f"model_name={model}", "--set", "dtype=fp32")
    assert command(run, "--judge", "vqa", *options) == 0
    assert contents(run) == before
    assert "vqa_score" in capsys.readouterr().out

    vqa = build_verifier("vqa", None, {"model_name": model, "dtype": "fp32"})
    vqa.load("cpu")
    items = [Item(Image.new("RGB", (48, 48), color), text) for text, color in COLORS.items()]
    expected = [score.value for score in vqa.score(items)]
    assert [line["score"] for line in lines(run)] == pytest.approx(expected, abs=1e-5)

    views = ("--table", "--report", "--curves", "--output", tmp_path / "out")
    assert command(run, *views) == 0
    mean, prompts = means(tmp_path / "out")["random", "vqa_score"]
    assert (mean, prompts) == (pytest.approx(sum(expected) / 3, abs=1e-5), "3")
    assert "vqa_score" in (tmp_path / "out" / "report.html").read_text()
    assert "vqa_score" in (tmp_path / "out" / "table.md").read_text()
    judged = {each.text: each.best.judged for each in read_run(run).searched if each.best}
    assert judged["a cat"]["vqa (vlm, dtype=fp32)", "vqa_score"] == pytest.approx(expected[1])


def test_one_command_judges_and_tabulates_and_its_exports_carry_it(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    judges = ("--judge", BRIGHTNESS, "shapes_oracle")
    assert command(run, *judges, "--table", "--output", out) == 3  # cats are not in its grammar
    found = means(out)
    assert found["random", "brightness"][0] == pytest.approx((1 / 3 + 128 / 255 + 1) / 3)
    verdict = judge(Image.new("RGB", (48, 48), "red"), "a red circle")
    assert found["random", "oracle_score"] == (verdict.score, "1")
    assert command(run, "--export", "imagefolder", "--output", tmp_path / "set") == 0
    rows = [json.loads(x) for x in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
    heard = [row["judges"][BRIGHTNESS]["brightness"] for row in rows]
    assert heard == [None, pytest.approx(1 / 3), None, pytest.approx(128 / 255), None, 1.0]


def test_what_is_judged_is_not_judged_again(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither after an interruption, nor for other options of price, nor elsewhere."""
    monkeypatch.setattr(judging, "BATCH", 1)
    monkeypatch.setattr(Fickle, "calls_left", 2)
    with pytest.raises(KeyboardInterrupt):
        command(run, "--judge", "tests.fickle:Fickle")
    assert "the same command goes on" in capsys.readouterr().err
    assert len(lines(run)) == 1
    monkeypatch.setattr(Fickle, "calls_left", 100)
    twin = colored(tmp_path / "twin")
    assert command(run, twin, "--judge", "tests.fickle:Fickle") == 0
    assert Fickle.calls_left == 98
    assert {line["path"] for line in lines(twin)} == {line["path"] for line in lines(run)}
    assert command(run, twin, "--judge", "tests.fickle:Fickle") == 0
    assert Fickle.calls_left == 98
    assert "6 of 6 on record" in capsys.readouterr().out
    assert len(lines(run)) == len(lines(twin)) == 3


def test_another_metric_of_an_answer_costs_nothing(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(run, "--judge", BRIGHTNESS) == 0
    dark = json.dumps({"name": BRIGHTNESS, "choice_of_metric": "darkness"})
    assert command(run, "--judge", dark) == 0
    said = capsys.readouterr().out
    assert "3 of 3 on record" in said and "darkness 0.388" in said


def test_an_image_that_has_changed_is_judged_again(run: Path) -> None:
    assert command(run, "--judge", BRIGHTNESS) == 0
    first = lines(run)[0]
    Image.effect_noise((48, 48), 9).convert("RGB").save(run / first["path"])
    assert command(run, "--table") == 0
    assert means(run)["random", "brightness"][1] == "2"  # it is not the one that was judged
    assert command(run, "--judge", BRIGHTNESS) == 0
    again = [line for line in lines(run) if line["path"] == first["path"]]
    assert [line["score"] for line in again] == [pytest.approx(1 / 3), pytest.approx(0.5, abs=0.01)]
    assert command(run, "--table") == 0
    assert means(run)["random", "brightness"][1] == "3"


def test_a_grader_behind_an_api_is_paid_once_and_what_it_leaves_out_is_named(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It blocks the red image for good, and loses the grey one once."""
    lost = [True]

    def script(call: Any) -> Reply:
        if call.image == 0xFF0000:
            return Reply(ending="blocked")
        if call.image == 0x808080 and lost[0]:
            return Reply(text="I would rather not")
        return Reply(text=grading(8.0))

    with FakeApi(script) as api:
        grader = json.dumps(
            {"name": "openai", "model_name": "m", "base_url": f"{api.url}/v1", "max_retries": 0}
        )
        assert command(run, "--judge", grader) == 3
        said = capsys.readouterr().err
        assert "2 without a score" in said
        assert re.search(r"a_red_circle.*: blocked, ", said)
        assert re.search(r"a_cat.*: unscored, the answer is no grading", said)
        calls, lost[0] = len(api.calls), False
        assert command(run, "--judge", grader) == 3  # a block is an answer, and stays
        assert len(api.calls) == calls + 1
        assert "1 without a score" in capsys.readouterr().err
        assert command(run, "--judge", grader, "--table") == 3
        assert len(api.calls) == calls + 1
    mean, prompts = means(run)["random", "openai (m, base_url=" + api.url + "/v1).overall_score"]
    assert (mean, prompts) == (8.0, "2")


def test_a_missing_image_is_named_and_costs_no_other(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    winner = next(run.glob("prompt@a_cat*_s@2001.png"))
    winner.unlink()
    next(run.glob("prompt@a_dog*_s@3001.png")).write_bytes(b"no picture")
    assert command(run, "--judge", BRIGHTNESS) == 3
    said = capsys.readouterr()
    assert f"{winner}: it cannot be read" in said.err and "it is not an image" in said.err
    assert "1 of 3 winners" in said.out


def judged_comparison(folder: Path) -> Path:
    """Two methods at two budgets on two prompts; every run has its pictures, the first one shared.

    The first image is red; what random and halving choose is grey and white.
    """
    budgets: dict[int, dict[str, list[float | None]]] = {
        40: {"clip": [0.1, 0.2]}, 80: {"clip": [0.3, 0.4]}
    }  # fmt: skip
    compared(folder, "clip", {"random": budgets, "halving": budgets})
    for color, method in (("grey", "random"), ("white", "halving")):
        for budget in budgets:
            run = folder / method / f"nfe{budget}_s0"
            made = Made(folder / "made", method, "clip")
            for index, prompt in enumerate(COMPARED[:2]):
                for number, shown in enumerate(("red", color)):
                    row = made.row(prompt, number + 0.1, prompt_index=index, id=number, seed=number)
                    Image.new("RGB", (32, 32), shown).save(made.folder / row["path"])
            made.write()
            winners = [json.loads(x) for x in (run / "winners.jsonl").read_text().splitlines()]
            for line, row in zip(winners, made.rows[1::2], strict=True):
                line["winners"][0]["path"] = row["path"]
            text = "".join(json.dumps(line) + "\n" for line in winners)
            (run / "winners.jsonl").write_text(text)
            for path in made.folder.iterdir():
                if path.name != "config.json":
                    path.rename(run / path.name)
            (made.folder / "config.json").unlink()
            made.folder.rmdir()
    return folder


def test_a_comparisons_winners_and_first_images_get_a_column_in_the_papers_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = judged_comparison(tmp_path / "c"), tmp_path / "out"
    judged = ("--judge", BRIGHTNESS, "--paper_table", "--table", "--output", out)
    assert command(folder, *judged) == 0
    rows = rows_of(out)
    assert float(rows["clip", "random"]["brightness"]) == pytest.approx(128 / 255)
    assert float(rows["clip", "halving"]["brightness"]) == pytest.approx(1)
    assert float(rows["", "no search"]["brightness"]) == pytest.approx(1 / 3)
    assert means(out)["halving", "brightness"][0] == pytest.approx(1)
    assert not (folder / "random" / "nfe40_s0" / JUDGED).exists()
    assert not (folder / JUDGED).exists()
    said = capsys.readouterr().out
    assert "2 of 2 first images" in said and said.count("2 of 2 winners") == 2
    # Smaller budgets are another column's worth of winners: these are asked for.
    assert command(folder, "--judge", BRIGHTNESS, "--budget", "40") == 0
    assert (folder / "random" / "nfe40_s0" / JUDGED).exists()
    assert command(folder, "--paper_table", "--budget", "40", "--output", tmp_path / "low") == 0
    assert float(rows_of(tmp_path / "low")["clip", "random"]["brightness"]) > 0.5


@pytest.mark.parametrize("kind", ["geneval", "t2i_compbench"])
def test_a_benchmarks_folder_is_scored_image_by_image(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "evaluation_metadata.jsonl"
    metadata = [{"tag": tag, "include": [], "prompt": text}
                for tag, text in (("colors", "a red cat"), ("counting", "two dogs"))]  # fmt: skip
    prompts.write_text("".join(json.dumps(line) + "\n" for line in metadata))
    searched = ExportRun(tmp_path / "run")
    (searched.folder / "config.json").write_text(json.dumps({"prompts": str(prompts)}))
    for index, grey in ((0, 51), (0, 102), (1, 255)):
        searched.add(index, 1.0, grey)
    searched.finish({}, {0: "colors", 1: "counting"})
    out = tmp_path / "out"
    assert command(searched.folder, "--export", kind, "--output", out) == 0
    layout = sorted(path for path in out.rglob("*.png"))
    capsys.readouterr()
    assert command(out, "--judge", BRIGHTNESS) == 0
    said = capsys.readouterr().out
    assert "brightness 0.650, 3 of 3 images" in said
    assert f"{out}, colors: brightness 0.300, 2 of 2 images" in said
    assert f"{out}, counting: brightness 1.00, 1 of 1 images" in said
    assert {line["prompt"] for line in lines(out)} == {"a red cat", "two dogs"}
    assert sorted(out / line["path"] for line in lines(out)) == layout


def test_a_tree_as_tt_scale_flux_leaves_it_is_judged(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", graded=True)
    assert command(tree, "--judge", BRIGHTNESS, "--table") == 0
    assert any(metric == "brightness" for _, metric in means(tree))


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("vqaa", "did you mean"),
        ('{"name": "vqa", "questoin": "{prompt}?"}', "questoin"),
        ('{"name": "clip", "choice_of_metric": "beauty"}', "no metric 'beauty'"),
        ('{"name": ', "JSON that cannot be read"),
        ('{"model_name": "x"}', "--judge wants a verifier's name"),
        ("fid", "judges images as a set"),
        ("tests.graders:Settled", "wants previews"),
        ('{"name": "ensemble", "verifiers": [{"name": "contrast"}]}', '"combine": "weighted"'),
        ("none.json", "There is no config file"),
    ],
)
def test_what_cannot_judge_is_one_sentence(
    asked: str, sentence: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(run, "--judge", asked) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1
    assert not (run / JUDGED).exists()


def test_a_file_may_list_several_judges(run: Path, tmp_path: Path) -> None:
    judges = tmp_path / "judges.json"
    judges.write_text(json.dumps([{"name": "contrast"}, {"name": BRIGHTNESS, "sign": -1}]))
    assert command(run, "--judge", judges, "--set", "sign=2") == 2  # whose?
    assert command(run, "--judge", judges) == 0
    assert {line["judge"] for line in lines(run)} == {"contrast", f"{BRIGHTNESS} (sign=-1)"}


def test_damage_costs_a_report_its_line_and_stops_a_judge(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(run, "--judge", BRIGHTNESS) == 0
    first, *others = (run / JUDGED).read_text().splitlines()
    (run / JUDGED).write_text("\n".join([first[:50], *others]) + "\n")
    assert command(run, "--table") == 0
    assert f"{JUDGED}, line 1: it is damaged" in capsys.readouterr().err
    assert means(run)["random", "brightness"][1] == "2"
    assert command(run, "--judge", BRIGHTNESS) == 2
    assert "move it away" in capsys.readouterr().err


def test_the_last_line_that_an_interruption_cut_short_is_judged_again(run: Path) -> None:
    assert command(run, "--judge", BRIGHTNESS) == 0
    whole = (run / JUDGED).read_bytes()
    (run / JUDGED).write_bytes(whole[:-30])
    assert command(run, "--judge", BRIGHTNESS) == 0
    assert (run / JUDGED).read_bytes() == whole
