"""Pictures of run folders: this project's and tt-scale-flux's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiment import collage, drawing
from process_results import main
from utils import ROOT, prompt_stem

PROMPT = "a tiny astronaut"
GREY = (128, 128, 128)
LONG = "a very long prompt, far longer than a file name may be, " * 4


class Run:
    """A fake run folder: one-coloured images with the records that a run writes beside them."""

    def __init__(self, folder: Path, *, ours: bool, size: tuple[int, int] = (128, 128)) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.ours, self.size = folder, ours, size
        self.rows = 0
        if ours:
            for name in ("config.json", "manifest.json"):
                (folder / name).write_text("{}")

    def round(
        self, number: int, scores: list[float | None], prompt: str = PROMPT, occurrence: int = 0
    ) -> Path:
        """All candidates of a round and its winner's record; returns the winner's image."""
        stem = prompt_stem(prompt, occurrence)
        winner = max(range(len(scores)), key=lambda i: scores[i] or -1)
        for index, score in enumerate(scores):
            seed = 1000 * number + index
            path = self.folder / f"{stem}_i@{number}_s@{seed}.png"
            Image.new("RGB", self.size, GREY).save(path)
            if self.ours:
                self._row(prompt, number, seed, score, path.name)
            if index == winner:
                best = path
                self._record(prompt, number, seed, score, path.with_suffix(".json"))
        return best

    def _row(self, prompt: str, number: int, seed: int, score: float | None, path: str) -> None:
        row = {
            "id": self.rows, "prompt": prompt, "prompt_index": 0, "round": number, "step": 20,
            "steps": 20, "seed": seed, "status": "ok" if score is not None else "blocked",
            "score": score, "path": path,
        }  # fmt: skip
        self.rows += 1
        with open(self.folder / "candidates.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    def _record(self, prompt: str, number: int, seed: int, score: float | None, path: Path) -> None:
        fields: dict[str, Any] = {
            "prompt": prompt, "search_round": number, "num_noises": 2, "best_noise_seed": seed,
            "best_score": score if self.ours else {"explanation": "why", "score": score},
            "choice_of_metric": "overall_score", "best_img_path": "output/gone/x.png",
        }  # fmt: skip
        path.write_text(json.dumps(fields))


@pytest.fixture(params=[True, False], ids=["ours", "tt-scale-flux"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    return Run(tmp_path / "run", ours=request.param)


def process(*arguments: object) -> int:
    return main(["--path", *map(str, arguments)])


def made(folder: Path) -> list[str]:
    return sorted(path.name for kind in ("collage_*", "round_*") for path in folder.glob(kind))


def columns_of(picture: Image.Image, colour: tuple[int, int, int], row: int) -> list[int]:
    return [x for x in range(picture.width) if picture.getpixel((x, row)) == colour]


def tiles_in(picture: Image.Image, row: int) -> int:
    """How many grey stretches, the images of `Run`, a row of pixels crosses."""
    columns = columns_of(picture, GREY, row)
    return sum(1 for x in columns if x - 1 not in columns)


def test_each_prompt_gets_one_collage_of_its_rounds(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2, 3, 4):
        run.round(number, [0.1, number / 10])
        run.round(number, [0.2, 0.3], "another")
    assert process(run.folder) == 0
    assert made(run.folder) == ["collage_a_tiny_astronaut_i@1-4.png", "collage_another_i@1-4.png"]
    shown, warned = capsys.readouterr()
    assert shown.split() == [str(run.folder / name) for name in made(run.folder)]
    assert warned == ""
    picture = Image.open(run.folder / "collage_a_tiny_astronaut_i@1-4.png")
    assert tiles_in(picture, picture.height - 20) == 4
    assert 4 * 128 < picture.width < 4 * 128 + 60
    assert 128 < picture.height < 200  # one row, a line of caption and one of note


@pytest.mark.parametrize("size", [128, 1024])
def test_the_label_lies_in_the_upper_left_corner_and_is_not_clipped(
    tmp_path: Path, size: int
) -> None:
    run = Run(tmp_path, ours=True, size=(size, size))
    for number in (998, 999):
        run.round(number, [-1.23456e-11])  # about the longest label there is
    assert process(tmp_path) == 0
    picture = Image.open(next(tmp_path.glob("collage_*")))
    left, bottom = picture.width - size - picture_gap(size), picture.height - picture_gap(size)
    image = picture.crop((left, bottom - size, left + size, bottom))
    label = image.crop((0, 0, size, size // 4))
    colours = {colour for _, colour in label.getcolors(1 << 24) or []}
    assert drawing.LABEL in colours  # the letters
    assert any(sum(colour) < 200 for colour in colours)  # the strip behind them
    for edge in ((0, 0, 1, size), (size - 1, 0, size, size), (0, size // 4, size, size)):
        assert image.crop(edge).getcolors() == [((edge[2] - edge[0]) * (edge[3] - edge[1]), GREY)]


def picture_gap(size: int) -> int:
    return 2 * max(3, round(size / 80))


def test_the_best_round_is_framed(run: Run) -> None:
    for number, score in ((1, 0.4), (2, 0.9), (3, None), (5, 0.8)):
        run.round(number, [score])
    process(run.folder)
    picture = Image.open(run.folder / "collage_a_tiny_astronaut_i@1-5.png")
    framed = columns_of(picture, drawing.WINNER, picture.height - 20)
    second = range(6 + 128 + 6 - 3, 6 + 2 * (128 + 6))  # after a gap of 6, with a frame of 3
    assert framed and set(framed) <= set(second)


def test_nothing_is_framed_without_a_score(run: Run) -> None:
    run.round(1, [None])
    process(run.folder)
    picture = Image.open(run.folder / "collage_a_tiny_astronaut_i@1-1.png")
    assert drawing.WINNER not in {colour for _, colour in picture.getcolors(1 << 24) or []}


def test_what_the_run_chose_as_its_best_is_framed(tmp_path: Path) -> None:
    run = Run(tmp_path, ours=True)
    chosen = run.round(1, [0.2])  # a score that depends on its pool compares only within it
    run.round(2, [0.9])
    summary = {"prompts": [{"prompt": PROMPT, "best": {"path": chosen.name}}]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    process(tmp_path)
    picture = Image.open(tmp_path / "collage_a_tiny_astronaut_i@1-2.png")
    assert max(columns_of(picture, drawing.WINNER, picture.height - 20)) < picture.width / 2


def test_many_rounds_wrap(run: Run) -> None:
    for number in range(1, 13):
        run.round(number, [0.5])
    process(run.folder)
    picture = Image.open(run.folder / "collage_a_tiny_astronaut_i@1-12.png")
    assert tiles_in(picture, picture.height - 20) == tiles_in(picture, picture.height - 160) == 6


def test_images_are_scaled_to_the_tallest(run: Run) -> None:
    run.round(1, [0.5])
    run.size = (300, 200)
    run.round(2, [0.4])
    process(run.folder)
    picture = Image.open(run.folder / "collage_a_tiny_astronaut_i@1-2.png")
    assert picture.width == 200 + 300 + 3 * picture_gap(200)


def test_prompts_of_one_slug_do_not_overwrite_each_other(run: Run) -> None:
    one, two = LONG + "one", LONG + "two"
    for prompt, occurrence in ((one, 0), (two, 0), (two, 1)):
        run.round(1, [0.5], prompt, occurrence)
        run.round(2, [0.6], prompt, occurrence)
    assert process(run.folder) == 0
    hashes = sorted(prompt_stem(*which).split("_hash@")[1] for which in ((one,), (two,), (two, 1)))
    slug = prompt_stem(one).removeprefix("prompt@").split("_hash@")[0]
    names = [slug, f"{slug}_hash@{hashes[1]}", f"{slug}_hash@{hashes[2]}"]
    assert made(run.folder) == sorted(f"collage_{name}_i@1-2.png" for name in names)


def test_a_search_that_rejected_rounds_shows_the_others(run: Run) -> None:
    for number in (2, 3, 7):
        run.round(number, [0.1, 0.2])
    process(run.folder)
    assert made(run.folder) == ["collage_a_tiny_astronaut_i@2-7.png"]


def test_rejected_rounds_and_those_without_a_score_are_named(tmp_path: Path) -> None:
    """And the run's choice is among the tiles, also where it is the pivot of such a round."""
    run = Run(tmp_path, ours=True)
    run.round(1, [0.1, 0.3])
    for number, score in ((2, 0.2), (3, 0.9), (4, None)):
        run.round(number, [score])
    run.round(5, [0.4])
    for number in (2, 3, 4):
        next(tmp_path.glob(f"*_i@{number}_*.json")).unlink()
    chosen = next(tmp_path.glob("*_i@3_*.png")).name
    summary = {"prompts": [{"best": {"path": chosen}}]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (picture,) = collage.pictures(tmp_path)
    assert picture.note.endswith("; i=2, i=3 rejected (none beat its pivot); i=4 without a score")
    labels = [(tile.label, tile.framed) for tile in picture.tiles]
    assert labels == [("i=1  0.300", False), ("i=3  0.900", True), ("i=5  0.400", False)]


def test_a_grid_of_an_extended_pool_says_how_much_of_it_is_new(tmp_path: Path) -> None:
    run = Run(tmp_path, ours=True)
    run.round(1, [0.1, 0.3])
    run.round(2, [0.5])  # its record, as all here, tells of a pool of 2
    notes = [picture.note for picture in collage.pictures(tmp_path, per_round=True)][1:]
    assert [note.rsplit(", ")[-1] for note in notes] == ["n=2", "1 new of 2"]


def test_per_round_adds_a_grid_of_all_candidates(run: Run) -> None:
    run.round(1, [0.1, 0.2])
    run.round(2, [0.3, None, 0.1, 0.2, 0.9])
    assert process(run.folder, "--per_round") == 0
    assert made(run.folder) == [
        "collage_a_tiny_astronaut_i@1-2.png",
        "round_a_tiny_astronaut_i@1.png",
        "round_a_tiny_astronaut_i@2.png",
    ]
    picture = Image.open(run.folder / "round_a_tiny_astronaut_i@2.png")
    last, first = picture.height - 40, picture.height - 190
    assert (tiles_in(picture, first), tiles_in(picture, last)) == (3, 2)
    framed = columns_of(picture, drawing.WINNER, last)
    assert framed and min(framed) > 128  # the fifth of the round is the second of its row
    assert not columns_of(picture, drawing.WINNER, first)


def test_grids_name_what_became_of_each_candidate(tmp_path: Path) -> None:
    Run(tmp_path / "ours", ours=True).round(1, [0.25, None])
    Run(tmp_path / "tt", ours=False).round(1, [0.25, 0.125])
    labels = {
        name: [
            tile.label for tile in list(collage.pictures(tmp_path / name, per_round=True))[1].tiles
        ]
        for name in ("ours", "tt")
    }
    assert labels["ours"] == ["1000  0.250", "1001  blocked"]
    assert labels["tt"] == ["1000  0.250", "1001"]  # only the winner's score was written


def test_an_interrupted_run_has_its_pictures(tmp_path: Path) -> None:
    run = Run(tmp_path, ours=True)
    run.round(1, [0.1, 0.2])
    with open(tmp_path / "candidates.jsonl", "a") as file:
        file.write('{"id": 2, "prom')
    assert process(tmp_path, "--per_round") == 0
    assert len(made(tmp_path)) == 2


def test_damaged_rows_stop_with_their_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, ours=True)
    (tmp_path / "candidates.jsonl").write_text('{"id": 2, "prom\n')
    run.round(1, [0.1, 0.2])
    assert process(tmp_path, "--per_round") == 2
    assert "Line 1 of" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["torn", "text", "missing", "empty"])
def test_a_damaged_image_is_named_and_left_out(
    run: Run, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run.round(1, [0.1])
    bad = run.round(2, [0.2])
    run.round(3, [0.3])
    content = {"torn": bad.read_bytes()[:100], "text": b"not an image", "empty": b""}
    if damage == "missing":
        bad.unlink()
    else:
        bad.write_bytes(content[damage])
    assert process(run.folder) == 0
    picture = Image.open(run.folder / "collage_a_tiny_astronaut_i@1-3.png")
    assert tiles_in(picture, picture.height - 20) == 2
    (warning,) = capsys.readouterr().err.splitlines()
    assert "warning" in warning and bad.name in warning


def test_a_damaged_video_is_named_once_and_left_out(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.round(1, [0.1])
    video = run.round(2, [0.2]).with_suffix(".mp4")
    video.write_bytes(b"")
    assert process(run.folder) == 0
    (warning,) = capsys.readouterr().err.splitlines()
    assert f"{video.name} is left out: it cannot be read as MP4" in warning
    assert made(run.folder) == [f"collage_a_tiny_astronaut_i@1-2.{kind}" for kind in ("mp4", "png")]


def test_a_folder_without_one_readable_image_fails(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run.round(1, [0.1]).unlink()
    assert process(run.folder) == 2
    assert "None of the images" in capsys.readouterr().err
    assert made(run.folder) == []


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16", "LA"])
def test_every_kind_of_png_is_drawn(run: Run, mode: str) -> None:
    Image.new(mode, (128, 128)).save(run.round(1, [0.1]))
    assert process(run.folder) == 0


@pytest.mark.parametrize(
    "prompt",
    [
        "一只猫坐在垫子上",
        "🐱🏽 family 👨‍👩‍👧 café naïve Ørsted straße — “so”…",
        "مرحبا بالعالم",
        "tabs\tand\nlines\x00\u200b\ufffe",
        "\ud83d alone",
        "x" * 3000,
        "word " * 2000,
        "",
        "   ",
    ],
)
def test_every_prompt_can_be_drawn(run: Run, prompt: str) -> None:
    run.round(1, [0.1], prompt)
    assert process(run.folder) == 0
    picture = Image.open(run.folder / made(run.folder)[0])
    assert picture.height < 260  # a caption has a few lines at most


@pytest.mark.parametrize(
    ("prompt", "caption"),
    [
        ("a  cat\non a mat", "a cat on a mat"),
        ("café in Łódź, Ørsted’s straße — œuvre", "cafe in Lodz, Orsted’s strasse - oeuvre"),
        ("🚀 over Paris", "[rocket] over Paris"),
        ("宇宙 飛行士 on the 月", "[…] on the […] (hash beef)"),
    ],
)
def test_captions_show_what_the_font_can_draw(tmp_path: Path, prompt: str, caption: str) -> None:
    record = {"prompt": prompt, "best_score": 1}
    (tmp_path / "prompt@_hash@beef_i@1_s@1.json").write_text(json.dumps(record))
    path = tmp_path / "prompt@slug_hash@beef_i@1_s@1.json"
    path.write_text(json.dumps(record))
    (picture,) = collage.pictures(tmp_path)
    assert picture.caption == caption


@pytest.mark.parametrize("size", [(16, 16), (24, 700), (700, 24), (1, 1)])
def test_odd_sizes_are_drawn(tmp_path: Path, size: tuple[int, int]) -> None:
    run = Run(tmp_path, ours=True, size=size)
    run.round(1, [0.1])
    run.round(2, [0.2])
    assert process(tmp_path, "--per_round") == 0


def test_pictures_keep_the_longest_side(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "LONGEST_SIDE", 400)
    for number in range(1, 9):
        run.round(number, [0.5])
    process(run.folder)
    picture = Image.open(run.folder / "collage_a_tiny_astronaut_i@1-8.png")
    assert 300 < picture.width <= 400
    assert tiles_in(picture, picture.height - 10) == 8


def test_pictures_keep_the_number_of_pixels(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "MOST_PIXELS", 60_000)
    run.round(1, [0.1 * n for n in range(16)])
    process(run.folder, "--per_round")
    picture = Image.open(run.folder / "round_a_tiny_astronaut_i@1.png")
    assert 30_000 < picture.width * picture.height <= 80_000  # the caption comes on top


def test_patterns_and_several_folders(tmp_path: Path) -> None:
    for name in ("one", "two", "other[1]"):
        Run(tmp_path / name, ours=True).round(1, [0.1])
    (tmp_path / "a_file").write_text("")
    assert process(tmp_path / "*o*", tmp_path / "one", tmp_path / "other[1]") == 0
    assert all(made(tmp_path / name) for name in ("one", "two", "other[1]"))


def test_one_bad_folder_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Run(tmp_path / "good", ours=True)
    good.round(1, [0.1])
    bad = Run(tmp_path / "bad", ours=True)
    record = bad.round(1, [0.1]).with_suffix(".json")
    record.write_text("{")
    assert process(bad.folder, good.folder) == 2
    assert record.name in capsys.readouterr().err
    assert made(good.folder)


def test_the_run_below_is_pointed_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path / "model" / "clip" / "clip_score" / "20260101_120000", ours=True)
    run.round(1, [0.1])
    assert process(tmp_path) == 2
    assert str(run.folder) in capsys.readouterr().err


def test_made_pictures_are_no_results(run: Run) -> None:
    run.round(1, [0.1, 0.2])
    process(run.folder, "--per_round")
    before = made(run.folder)
    assert process(run.folder, "--per_round") == 0
    assert made(run.folder) == before


def test_user_errors_are_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in ("missing", "empty", "nothing/*"):
        command = [sys.executable, "process_results.py", f"--path={tmp_path / path}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stdout == ""
        (message,) = done.stderr.splitlines()
        assert message.startswith("process_results.py: error: ")
        assert str(tmp_path / path) in message


def test_a_row_may_name_a_picture_of_which_nothing_else_is_left(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", ours=True)
    lost = run.round(1, [0.5]).name.replace("hash@", "hash@0")
    rows = run.folder / "candidates.jsonl"
    row = {"id": 1, "prompt": "x", "prompt_index": 1, "round": 1, "step": 1, "steps": 1,
           "seed": 8, "status": "ok", "score": 0.5, "path": lost}  # fmt: skip
    rows.write_text(json.dumps(row) + "\n")
    assert process(run.folder, "--per_round") == 0
    rows.write_text(json.dumps({**row, "path": True}) + "\n")
    assert process(run.folder, "--per_round") == 2


def test_no_deep_learning_library_is_imported() -> None:
    code = (
        "import sys, process_results\n"
        "early = {'PIL'} & set(sys.modules)\n"
        "import experiment.collage\n"
        "sys.exit(bool(early or {'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
