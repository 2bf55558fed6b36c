"""Which flags of process_results.py go together, and what folders stand for."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from process_results import _distinct, main
from tests.test_report import Made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = Made(tmp_path / "model" / "run")
    made.row("a cat", 1.0)
    made.row("a dog", 2.0)
    return made.write()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--export", "imagefolder", "--report"], "--export goes alone"),
        (["--simulate", "best", "--table"], "--simulate goes alone"),
        (["--simulate", "best", "--export", "parquet"], "goes alone"),
        (["--export", "imagefolder", "--margin", "0.1"], "--margin goes with --export preferences"),
        (["--margin", "0"], "--margin goes with --export preferences"),
        (["--push_to_hub", "me/mine"], "--push_to_hub goes with --export"),
        (["--output", "OUT"], "--output is for report"),
        (["--top_k", "2", "--output", "OUT"], "--output is for report"),
        (["--simulate", "best", "--output", "OUT"], "--output is for report"),
        (["--judge", "contrast", "--output", "OUT"], "--output is for report"),
        (["--table", "--budget", "40"], "--budget goes with"),
        (["--table", "--set", "model_name=x"], "--set goes with --judge"),
        (["--judge", "contrast", "--set", "model_name"], "--set wants KEY=VALUE"),
        (["--judge", "contrast", "--budget", "40"], "--budget is of comparisons"),
    ],
)
def test_flags_without_effect_are_refused(
    flags: list[str],
    sentence: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(tmp_path.rglob("*"))
    flags = [str(tmp_path / "out") if flag == "OUT" else flag for flag in flags]
    assert main(["--path", str(run), *flags]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_is_no_place_for_output(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run / "config.json"
    assert main(["--path", str(run), "--table", "--output", str(file)]) == 2
    assert "is a file: give a folder" in capsys.readouterr().err


def test_folders_keep_the_order_in_which_they_are_first_named(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).mkdir()
    a, b, c = (tmp_path / name for name in "abc")
    assert _distinct([c, a, tmp_path / "b" / ".." / "c", b, a]) == [c, a, b]


def test_a_folder_named_twice_is_read_once(run: Path, tmp_path: Path) -> None:
    paths = [str(run), str(run.parent / "." / "run"), str(run.parent / "r*")]
    assert main(["--path", *paths, "--table", "--output", str(tmp_path / "out")]) == 0
    with open(tmp_path / "out" / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["run"] for row in rows} == {"random"}
    assert not any(row["against"] for row in rows)


@pytest.mark.parametrize(
    "flags", [["--report"], ["--export", "imagefolder"], ["--simulate", "best"], []]
)
def test_a_folder_above_a_run_points_to_it(
    flags: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--path", str(tmp_path), *flags]) == 2
    said = capsys.readouterr().err
    assert f"give a run's own folder, such as {run}" in said


def test_an_empty_folder_costs_no_other(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    folders, out = [str(tmp_path / "empty"), str(run)], tmp_path / "out"
    assert main(["--path", *folders, "--table", "--output", str(out)]) == 2
    assert "There are no results in" in capsys.readouterr().err
    assert (out / "table.csv").exists()
