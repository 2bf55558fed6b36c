"""Comparisons of searches at equal budgets, on the bundled model and on made-up scores."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experiment.compare import compare, prepare
from experiment.compare_cell import Winner
from experiment.compare_config import (
    CompareConfig,
    load_compare_config,
    parse_compare_config,
)
from experiment.compare_search import best_of, within
from experiment.compare_table import Measured, Table, tabulate
from experiment.compare_text import as_csv, as_markdown
from experiment.curves import spread, write_curves
from experiment.line_styles import end_at_bounds, line_style
from experiment.records import CandidateRecord, read_candidates
from experiment.statistics import wilson
from main import main
from tests.fickle import Fickle
from utils import ROOT, UserError

QUICK = "configs/compare/quick.json"
STEPS = 2


def quick(**changes: Any) -> CompareConfig:
    """The quick comparison, quicker: two steps, and no CLIP to load."""
    return load_compare_config(
        QUICK,
        {
            "pipeline_call_args.num_inference_steps": STEPS,
            "verifier_args": {"name": "tests.fickle:Fickle"},
            "budgets": [8, 20],
            **changes,
        },
    )


def winners(folder: Path) -> list[dict[str, Any]]:
    """Every line of every run: what the table is made of, without times."""
    lines = []
    for path in sorted(folder.rglob("winners.jsonl")):
        for line in path.read_text().splitlines():
            content = json.loads(line)
            del content["summary"]["seconds"], content["crc32"]
            for winner in content["winners"]:
                del winner["seconds"]
            lines.append({"run": str(path.parent.relative_to(folder)), **content})
    return lines


def timeless(folder: Path) -> list[list[str]]:
    """The table without its seconds."""
    rows = list(csv.reader((folder / "table.csv").read_text().splitlines()))
    kept = [at for at, name in enumerate(rows[0]) if not name.startswith("seconds")]
    return [[row[at] for at in kept] for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)  # as in every test: another number rounds differently
    root = tmp_path_factory.mktemp("comparison")
    assert compare(quick(), str(root)).whole
    return root / "compare" / "quick"


def test_every_run_is_an_ordinary_run(finished: Path, tmp_path: Path) -> None:
    for label in ("random", "zero-order"):
        folder = finished / label / "nfe20_s0"
        summary = json.loads((folder / "summary.json").read_text())
        rows = read_candidates(folder)
        assert summary["total"]["nfe"] == sum(row.nfe for row in rows) == 2 * 20
        assert [p["prompt_index"] for p in summary["prompts"]] == [0, 1]
        assert (folder / "manifest.json").exists()
        # Its config alone repeats it.
        saved = str(folder / "config.json")
        assert main(["--pipeline_config_path", saved, "--output_dir", str(tmp_path / label)]) == 0
        (again,) = (tmp_path / label).glob("*/*/*/*")
        assert [row.score for row in read_candidates(again)] == [row.score for row in rows]


def test_the_table_holds_what_the_runs_came_to(finished: Path) -> None:
    rows = list(csv.DictReader((finished / "table.csv").read_text().splitlines()))
    assert [(row["method"], int(row["budget"])) for row in rows] == [
        ("random", 8), ("random", 20), ("zero-order", 8), ("zero-order", 20),
    ]  # fmt: skip
    for row in rows:
        assert float(row["nfe"]) <= int(row["budget"])
        folder = finished / row["method"] / "nfe20_s0"
        best = []
        for index in (0, 1):
            images = [r for r in read_candidates(folder) if r.prompt_index == index]
            paid = images[: int(row["budget"]) // STEPS]
            best.append(max(paid, key=lambda r: r.score))
        assert float(row["brightness"]) == pytest.approx(np.mean([r.score for r in best]))
        for record in best:  # the winner's picture, as the verifier saw it
            assert record.path is not None
            pixels = np.asarray(Image.open(folder / record.path), dtype=np.float64)
            assert pixels.mean() / 255 == pytest.approx(record.score)
    random, climbing = rows[1], rows[3]
    difference = float(climbing["brightness"]) - float(random["brightness"])
    assert float(climbing["brightness_difference"]) == pytest.approx(difference)
    assert random["brightness_difference"] == ""
    assert "## 20 NFE" in (finished / "table.md").read_text()
    assert json.loads((finished / "table.json").read_text())["prompts"] == 2
    with Image.open(finished / "curves.png") as picture:
        assert picture.size[0] > 1000


def test_judges_see_the_winners_pictures_and_the_ceiling_all(finished: Path) -> None:
    from shapes.oracle import judge

    for line in winners(finished):
        folder = finished / line["run"]
        rows = [r for r in read_candidates(folder) if r.prompt_index == line["prompt_index"]]
        for winner in line["winners"]:
            verdict = judge(Image.open(folder / winner["path"]), line["prompt"])
            assert winner["scores"]["oracle_score"] == verdict.score
            if line["run"].startswith("random"):
                paid = rows[: winner["budget"] // STEPS]
                judged = [judge(Image.open(folder / str(r.path)), r.prompt).score for r in paid]
                assert winner["ceilings"] == {"oracle_score": max(judged)}
            else:
                assert winner["ceilings"] == {}


def test_a_shorter_budget_is_looked_up_as_a_run_of_its_own_would_end(
    finished: Path, tmp_path: Path
) -> None:
    """But for rounding: a run of its own has smaller last batches."""
    assert compare(quick(budgets=[8]), str(tmp_path)).whole
    alone = winners(tmp_path / "compare" / "quick")
    looked_up = winners(finished)
    assert len(alone) == len(looked_up) == 4
    for own, found in zip(alone, looked_up, strict=True):
        (mine,), theirs = own["winners"], found["winners"][0]
        assert theirs["budget"] == 8
        assert {**mine, "scores": 0, "ceilings": 0} == {**theirs, "scores": 0, "ceilings": 0}
        assert mine["scores"]["brightness"] == pytest.approx(
            theirs["scores"]["brightness"], abs=1 / 255
        )


def test_an_interrupted_comparison_goes_on_to_the_same_table(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fickle, "calls_left", 4)  # in the second prompt's third round
    with pytest.raises(KeyboardInterrupt):
        compare(quick(), str(tmp_path))
    folder = tmp_path / "compare" / "quick"
    torn = folder / "random" / "nfe20_s0" / "candidates.jsonl"
    assert {row.prompt_index for row in read_candidates(torn.parent)} == {0, 1}
    with open(torn, "a") as file:
        file.write('{"id": 6, "prom')  # a row cut short
    stray = torn.parent / "prompt@an_orange_square_and_a_purple_ring_hash@a9297c96_i@9_s@1.png"
    stray.write_bytes(b"")
    assert not (folder / "table.csv").exists()  # no prompt is done by all methods
    assert compare(quick(), str(tmp_path)).whole
    assert timeless(folder) == timeless(finished)
    assert winners(folder) == winners(finished)
    for path in finished.rglob("prompt@*"):
        if path.suffix == ".png":
            assert (folder / path.relative_to(finished)).read_bytes() == path.read_bytes()
    assert len(list(folder.rglob("*.png"))) == len(list(finished.rglob("*.png")))


def test_a_run_to_a_larger_budget_answers_for_smaller_ones(finished: Path, tmp_path: Path) -> None:
    """Of a method that does the same whatever its budget; also for fewer prompts than it did."""
    root = tmp_path / "root"
    shutil.copytree(finished, root / "compare" / "quick")
    assert compare(quick(budgets=[8], num_prompts=1), str(root)).whole
    runs = {path.name for path in (root / "compare" / "quick" / "random").iterdir()}
    assert runs == {"nfe20_s0"}


def test_what_an_earlier_version_ran_counts_on(finished: Path, tmp_path: Path) -> None:
    """An option that has come since is at its default there; another value is another config."""
    root = tmp_path / "root"
    shutil.copytree(finished, root / "compare" / "quick")
    saved = next((root / "compare" / "quick").glob("random/*/config.json"))
    content = json.loads(saved.read_text())
    del content["search_args"]["stochastic"]
    saved.write_text(json.dumps(content))
    assert compare(quick(), str(root)).whole
    content["search_args"]["stochastic"] = True
    saved.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"another config \(other search_args"):
        compare(quick(), str(root))


@pytest.mark.slow
def test_time_runs_out_between_prompts_and_more_prompts_may_follow(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--compare", QUICK, "--output_dir", str(tmp_path), "--set=budgets=[8,20]"]
    flags += ["--set", 'verifier_args={"name": "tests.fickle:Fickle"}']
    flags += ["--set", f"pipeline_call_args.num_inference_steps={STEPS}"]
    assert main([*flags, "--time_limit=0"]) == 4
    assert "no table" in capsys.readouterr().out
    assert main([*flags, "--num_prompts=1"]) == 0
    folder = tmp_path / "compare" / "quick"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    assert main(flags) == 0
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    pictures = {path for path in before if path.name != "curves.png"}
    assert pictures and all(after[path] == before[path] for path in pictures)
    assert timeless(folder) == timeless(finished)
    # All done: nothing is loaded or searched again, and fewer prompts take nothing away.
    assert main([*flags, "--num_prompts=1", "--time_limit=0"]) == 0
    assert len(winners(folder)) == 4
    assert "1 of 1 prompts" in (folder / "table.md").read_text()
    capsys.readouterr()
    assert main([*flags, "--dry_run"]) == 0
    assert "80 NFE in all, all of it done" in capsys.readouterr().out
    with pytest.raises(UserError, match="other pipeline_call_args"):
        compare(quick(**{"pipeline_call_args.num_inference_steps": 3}), str(tmp_path))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budgetz": [1]}, "did you mean 'budget'"),
        ({"budgets": [1]}, "cannot finish one image"),
        ({"budgets": []}, "budgets"),
        ({"seeds": [-1]}, "seeds"),
        ({"methods": {"a": {"search_method": "radnom"}}}, "'a' cannot run.*'random'"),
        ({"methods": {"a": {"search_method": "zero-order", "treshold": 1}}}, "'threshold'"),
        ({"methods": {"a b": {}, "A_b": {}}}, "share a folder"),
        ({"search_args.pool": "nested"}, "no override"),
        ({"seed": 3}, "no override"),
        ({"ceilings": ["oracle_rihgt"]}, "no judge gives"),
        ({"pipeline_call_args": {}}, "num_inference_steps"),
        ({"judges": [{"name": "fid", "reference": "x.npz"}]}, "'fid'"),
    ],
)
def test_what_cannot_be_compared_is_refused_at_once(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        prepare(quick(**change), "output")


def test_an_unknown_key_names_the_nearest() -> None:
    content = json.loads((ROOT / QUICK).read_text())
    with pytest.raises(UserError, match="Unknown key 'budget': did you mean 'budgets'"):
        parse_compare_config({**content, "budget": [1]})


def test_a_method_that_fits_itself_to_its_budget_runs_at_each() -> None:
    methods = {"random": {}, "halving": {"search_method": "halving"}}
    comparison = prepare(quick(methods=methods, seeds=[0, 1]), "output")
    runs = [(cell.label, cell.seed, cell.budgets) for cell in comparison.cells]
    assert runs == [
        (label, seed, budgets)
        for seed in (0, 1)
        for label, budgets in [("random", (8, 20)), ("halving", (8,)), ("halving", (20,))]
    ]
    assert "halving                 a run for each budget" in str(comparison)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "compare").glob("*.json")), ids=str)
def test_our_comparisons_can_be_planned(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--compare", str(path), "--dry_run", f"--output_dir={tmp_path}"]) == 0
    assert "NFE in all" in capsys.readouterr().out


def row(number: int, **fields: Any) -> CandidateRecord:
    record = CandidateRecord(
        id=number, prompt="", prompt_index=0, round=1, step=4, steps=4, seed=number, recipe={},
        parents=(), status="ok", score=0.0, scores={}, judges={}, explanation="", nfe=4, rows=4,
        batch_size=1, seconds=1.0, path=f"{number}.png",
    )  # fmt: skip
    return replace(record, **fields)


def test_the_rows_within_a_budget_and_the_best_of_them() -> None:
    """Previews cost too and never win; nor does what has no score or no picture."""
    rows = [
        row(0, step=2, nfe=2, score=9.0, path=None),
        row(1, nfe=2, score=1.0),
        row(2, score=math.nan),
        row(3, score=3.0),
        row(4, score=3.0),
        row(5, score=5.0, path=None),
    ]
    assert [len(within(rows, budget)) for budget in (1, 2, 3, 4, 8, 12, 100)] == [
        0, 1, 1, 2, 3, 4, 6,
    ]  # fmt: skip
    assert [best_of(rows[:n]) for n in (0, 1, 2, 3, 4, 6)] == [
        None, None, rows[1], rows[1], rows[3], rows[3],
    ]  # fmt: skip


def measured(
    method: str, prompt: int, seed: int, budget: int, score: float, ceiling: float = 1.0
) -> Measured:
    scores, ceilings = {"quality": score}, {"quality": ceiling}
    winner = Winner(budget, budget, budget, 1.0, 1, "x.png", scores, ceilings)
    return Measured(method, seed, prompt, winner)


def made_up(**changes: Any) -> CompareConfig:
    return CompareConfig(
        **{
            "name": "made up",
            "pipeline_config": "x",
            "methods": {"plain": {}, "better": {}},
            "budgets": (10, 20),
            "seeds": (0, 1),
            "ceilings": ("quality",),
            **changes,
        }
    )


def test_seeds_are_averaged_within_a_prompt_and_prompts_are_paired() -> None:
    scores = {0: (1.0, 3.0), 1: (10.0, 20.0)}  # by prompt, for both seeds
    rows = [
        measured(method, prompt, seed, budget, scores[prompt][seed] + budget + gain)
        for method, gain in (("plain", 0), ("better", 1))
        for prompt in scores
        for seed in (0, 1)
        for budget in (10, 20)
    ]
    # A third prompt that only the first method has done, and one seed of a fourth.
    rows += [measured("plain", 2, 0, budget, 1e9) for budget in (10, 20)]
    fourth = [measured(m, 3, 1, b, 5.0 + b) for m in ("plain", "better") for b in (10, 20)]
    table = tabulate(made_up(), ("quality",), rows + fourth, 5)
    assert table is not None and (table.prompts, table.wanted, table.seeds) == (3, 5, (0, 1))
    entry = table.entry("better", 20)
    assert entry.scores["quality"].mean == pytest.approx((2 + 15 + 4) / 3 + 1 + 20)
    only = tabulate(made_up(), ("quality",), rows, 5)
    assert only is not None
    gain = only.entry("better", 10).differences["quality"]
    assert gain.mean == 1.0 and not gain.bounded  # of two prompts
    text = as_markdown(only)
    assert "| +1 |" in text and "**" not in text
    assert "No intervals and no tests: fewer than 10 prompts." in text
    assert only.ceilings[0].score.mean == 1.0
    assert tabulate(made_up(), ("quality",), rows[:3], 5) is None


def grid(methods: int, score: Callable[[int, int, int], float], seeds: int = 1) -> Table:
    """A table of 24 prompts. score: of method, prompt and seed."""
    labels = [f"method {at}" for at in range(methods)]
    rows = [
        measured(label, prompt, seed, 10, score(at, prompt, seed))
        for at, label in enumerate(labels)
        for prompt in range(24)
        for seed in range(seeds)
    ]
    config = made_up(
        methods={label: {} for label in labels}, budgets=(10,), seeds=tuple(range(seeds))
    )
    table = tabulate(config, ("quality",), rows, 24)
    assert table is not None
    return table


def test_prompts_are_paired_and_prompts_are_what_is_resampled() -> None:
    table = grid(2, lambda at, prompt, seed: prompt + at + 100.0 * seed, seeds=2)
    gain = table.entry("method 1", 10).differences["quality"]
    assert (gain.mean, gain.low, gain.high) == (1.0, 1.0, 1.0)  # paired: no doubt at all
    own = table.entry("method 1", 10).scores["quality"]
    assert 51 < own.low < own.mean < own.high < 74  # between the prompts' means over seeds
    text = as_markdown(table)
    assert "**+1 [+1, +1]**" in text and "seeds 0, 1 averaged within a prompt" in text
    assert "Holm's correction for the 1 method compared in a column" in text


def test_shares_have_wilsons_intervals_and_mcnemars_test() -> None:
    """Right for the first method on 12 of 24 prompts; for the second on 10 more and 1 less."""

    def right(at: int, prompt: int, seed: int) -> float:
        return float(prompt < 12 if at == 0 else 1 <= prompt < 22)

    table = grid(2, right)
    assert table.shares == ("quality",)
    entry = table.entry("method 1", 10)
    assert entry.scores["quality"] == wilson([1.0] * 21 + [0.0] * 3)
    gain = entry.differences["quality"]
    assert (gain.better, gain.worse, gain.p) == (10, 1, pytest.approx(24 / 2048))
    text = as_markdown(table)
    assert "Wilson's" in text and "McNemar's" in text and "10 : 1**" in text
    row = list(csv.DictReader(as_csv(table).splitlines()))[1]
    assert float(row["quality_difference_p"]) == float(row["quality_difference_p_holm"]) == gain.p
    # Of many methods that come to the same, Holm's correction leaves none.
    many = grid(18, lambda at, prompt, seed: right(min(at, 1), prompt, seed))
    assert many.entry("method 17", 10).differences["quality"].adjusted == pytest.approx(
        17 * 24 / 2048
    )
    assert "**" not in as_markdown(many)


def test_a_share_over_several_seeds_counts_its_prompts() -> None:
    table = grid(2, lambda at, prompt, seed: float((prompt + seed + at) % 2), seeds=2)
    assert table.shares == ("quality",)
    assert table.entry("method 0", 10).scores["quality"] == wilson([0.5] * 24)


def test_a_prompt_without_a_score_counts_for_no_method() -> None:
    rows = [
        measured(method, prompt, 0, budget, math.nan if (method, prompt) == hole else prompt)
        for hole in [("better", 1)]
        for method in ("plain", "better")
        for prompt in (0, 1, 2)
        for budget in (10, 20)
    ]
    table = tabulate(made_up(), ("quality",), rows, 3)
    assert table is not None and table.answered == {"quality": 2}
    assert {entry.scores["quality"].mean for entry in table.entries} == {1.0}
    assert "`quality`: 2 prompts" in as_markdown(table)
    assert "nan" not in as_csv(table)


def test_what_was_run_when_another_method_came_first_has_no_ceiling() -> None:
    rows = [
        measured(method, 0, 0, budget, 1.0) for method in ("plain", "better") for budget in (10, 20)
    ]
    bare = [replace(row, winner=replace(row.winner, ceilings={})) for row in rows]
    none = tabulate(made_up(), ("quality",), bare, 1)
    some = tabulate(made_up(), ("quality",), [bare[0], *rows[1:]], 1)
    assert none is not None and none.ceilings == () and none.entries
    assert some is not None and [each.budget for each in some.ceilings] == [20]


def test_overspending_is_never_tabulated() -> None:
    rows = [measured(m, 0, 0, b, 1.0) for m in ("plain", "better") for b in (10, 20)]
    greedy = replace(rows[0], winner=replace(rows[0].winner, nfe=11))
    with pytest.raises(AssertionError, match="plain overspent 10"):
        tabulate(made_up(), ("quality",), [greedy, *rows[1:]], 1)


@pytest.mark.parametrize("budgets", [(10,), (10, 20, 80)])
@pytest.mark.parametrize("methods", [1, 18])
def test_the_picture_has_room_for_many_methods_or_one(
    methods: int, budgets: tuple[int, ...], tmp_path: Path
) -> None:
    labels = [f"method {at}" for at in range(methods)]
    rng = np.random.default_rng(0)
    rows = [
        measured(label, prompt, 0, budget, rng.normal())
        for label in labels
        for prompt in range(10)
        for budget in budgets
    ]
    config = made_up(methods={label: {} for label in labels}, budgets=budgets)
    table = tabulate(config, ("quality",), rows, 10)
    assert table is not None
    write_curves(table, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        colors = picture.convert("RGB").getcolors(2**24)
    assert colors is not None
    drawn = {color for _, color in colors}
    assert {(0, 0, 0), (255, 255, 255)} <= drawn
    assert ((0xD5, 0x5E, 0x00) in drawn) == (methods > 1)


def test_eighteen_lines_differ_in_color_and_dash_and_the_first_is_heaviest() -> None:
    styles = [line_style(at) for at in range(18)]
    assert len({(each["color"], each["ls"]) for each in styles}) == 18
    assert len({(each["color"], each["marker"]) for each in styles}) == 18
    assert styles[0]["lw"] > max(each["lw"] for each in styles[1:])


def test_a_scores_axis_ends_at_0_or_1_unless_scores_lie_beyond() -> None:
    from matplotlib.figure import Figure

    def limits(values: list[float]) -> tuple[float, float]:
        panel = Figure().subplots()
        panel.plot(values)
        end_at_bounds(panel, values)
        low, high = panel.get_ylim()
        return low, high

    assert limits([1.0, 1.0])[1] == 1
    assert limits([0.0, 1.0]) == (0, 1)
    assert limits([-0.1, 1.1])[0] < -0.1 and limits([-0.1, 1.1])[1] > 1.1


def test_names_are_moved_apart_and_keep_their_order() -> None:
    wanted, heights = [0.5, 0.52, 0.9, 0.51, 0.53], [0.04] * 5
    places = spread(wanted, heights)
    assert sorted(range(5), key=lambda i: places[i]) == [0, 3, 1, 4, 2]
    ordered = sorted(places)
    gaps = np.diff(ordered)
    assert (gaps >= 0.04 - 1e-9).all()
    assert places[2] == 0.9  # has room where it is
    assert np.mean(ordered[:4]) == pytest.approx(0.515)
