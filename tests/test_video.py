"""Videos: MP4 files, whole runs that write them, and the pictures of such runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experiment import drawing
from experiment.config import ExportArgs, parse_config
from experiment.runner import run
from experiment.video import BadVideo, iterate_frames, mp4_bytes, probe, read_frames
from process_results import main
from tests.families import FAMILIES, PROMPT
from tests.graders import Motion, motion
from utils import UserError, prompt_stem


def waves(n: int, width: int, height: int, phase: float = 0.0) -> list[Image.Image]:
    """Smooth colors in slow motion."""
    y, x = np.mgrid[0:height, 0:width]
    frames = []
    for t in range(n):
        bands = (
            np.sin(2 * x / width + t / 20 + phase),
            np.cos(2 * y / height + t / 20),
            np.sin((x + y) / (width + height) * 3 - t / 20),
        )
        frames.append(Image.fromarray((127 + 120 * np.stack(bands, -1)).astype(np.uint8)))
    return frames


def written(path: Path, frames: Sequence[Image.Image], fps: int = 24) -> Path:
    path.write_bytes(mp4_bytes(frames, fps))
    return path


def psnr(one: Sequence[Image.Image], other: Sequence[Image.Image]) -> float:
    """In dB, over the part that both cover."""
    width, height = one[0].size
    pairs = zip(one, (frame.crop((0, 0, width, height)) for frame in other), strict=True)
    errors = [np.asarray(a, dtype=float) - np.asarray(b, dtype=float) for a, b in pairs]
    return float(10 * np.log10(255**2 / np.mean(np.square(errors))))


@pytest.mark.parametrize(
    ("n", "size", "even"),
    [(25, (128, 96), (128, 96)), (9, (67, 49), (68, 50)), (1, (64, 64), (64, 64))],
)
def test_frames_come_back_nearly_as_they_were(
    n: int, size: tuple[int, int], even: tuple[int, int], tmp_path: Path
) -> None:
    frames = waves(n, *size)
    path = written(tmp_path / "a.mp4", frames, 15)
    seen = probe(path)
    assert (seen.frames, seen.fps, seen.size) == (n, 15, even)
    back = read_frames(path)
    assert {frame.size for frame in back} == {even}
    assert psnr(frames, back) > 35


def test_plain_colors_keep_their_hue(tmp_path: Path) -> None:
    """Writer and reader agree on what the file's luma and chroma mean."""
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (255, 255, 255)]
    path = written(tmp_path / "a.mp4", [Image.new("RGB", (64, 64), c) for c in colors])
    for color, frame in zip(colors, read_frames(path), strict=True):
        assert np.abs(np.subtract(frame.getpixel((30, 30)), color)).max() <= 3


@pytest.mark.parametrize("size", [(128, 96), (66, 66), (33, 47)])
def test_the_same_frames_give_the_same_bytes(size: tuple[int, int]) -> None:
    frames = waves(12, *size)
    assert len({mp4_bytes(frames, 24) for _ in range(6)}) == 1


def test_odd_sides_repeat_their_last_row_and_column(tmp_path: Path) -> None:
    frames = waves(2, 33, 47)
    (one, _) = read_frames(written(tmp_path / "a.mp4", frames))
    edge = np.asarray(one, dtype=int)
    assert np.abs(edge[:, 33] - edge[:, 32]).mean() < 4
    assert np.abs(edge[47] - edge[46]).mean() < 4


def test_a_few_frames_are_spread_from_the_first_to_the_last(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", waves(9, 32, 32))
    everything = [frame.tobytes() for frame in iterate_frames(path)]
    assert [f.tobytes() for f in read_frames(path, 3)] == [everything[i] for i in (0, 4, 8)]
    assert [f.tobytes() for f in read_frames(path, 1)] == everything[:1]
    assert [f.tobytes() for f in read_frames(path, 99)] == everything


@pytest.mark.parametrize("damage", ["empty", "text", "torn"])
def test_what_is_no_video_is_said_to_be_none(damage: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", waves(3, 32, 32))
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"no video\n" * 50, "torn": whole[:900]}[damage])
    for read in (probe, read_frames):
        with pytest.raises(BadVideo, match="cannot be read as MP4"):
            read(path)
    with pytest.raises(FileNotFoundError):
        probe(tmp_path / "missing.mp4")


def exported(**args: Any) -> ExportArgs:
    content = {"pretrained_model_name_or_path": "owner/name", "verifier_args": {"name": "contrast"}}
    return parse_config({**content, "export_args": args}).export


def test_how_videos_are_written_can_be_set() -> None:
    assert (exported().fps, exported().rate_factor) == (24, 18)
    assert (exported(fps=15).fps, exported(crf=30).rate_factor) == (15, 30)
    # imageio's writer, behind diffusers' export_to_video: int((1 - quality / 10) * 51)
    assert [exported(quality=q).rate_factor for q in (0, 5, 10)] == [51, 25, 1]
    for args, said in (
        ({"fsp": 3}, "Unknown key 'export_args.fsp': did you mean 'fps'"),
        ({"bitrate": 1000}, "Unknown key 'export_args.bitrate': known: crf, fps, quality"),
        ({"fps": 0}, "export_args.fps"),
        ({"quality": 5, "crf": 20}, "export_args: 'quality' and 'crf' say the same"),
    ):
        with pytest.raises(UserError, match=said):
            exported(**args)


def test_a_lower_quality_is_smaller() -> None:
    frames = waves(9, 128, 128)
    assert len(mp4_bytes(frames, 24, crf=40)) < len(mp4_bytes(frames, 24, crf=10))


# Whole runs.


@pytest.fixture(scope="module", params=["wan", "ltx"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny video model on disk, and the arguments of its call."""
    torch.set_num_threads(1)
    family = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("models") / request.param
    family.build().save_pretrained(folder)
    return str(folder), {**family.call_args, "num_inference_steps": 2}


@pytest.fixture(autouse=True)
def nothing_chosen() -> Iterator[None]:
    Motion.chosen.clear()
    yield


RANDOM = {"search_method": "random", "search_rounds": 2}
ZERO_ORDER = {"search_method": "zero-order", "search_rounds": 2, "num_neighbors": 2,
              "on_reject": "resample"}  # fmt: skip


def ran(root: Path, checkpoint: tuple[str, dict[str, Any]], **changes: Any) -> Path:
    content = {
        "pretrained_model_name_or_path": checkpoint[0],
        "torch_dtype": "fp32",
        "pipeline_call_args": checkpoint[1],
        "verifier_args": {"name": "tests.graders:Motion"},
        "search_args": RANDOM,
        "judges": [{"name": "tests.graders:Motion"}, {"name": "contrast", "frames": 2}],
        "export_args": {"fps": 8},
        "prompt": PROMPT,
        **changes,
    }
    return run(parse_config(content), str(root)).folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(p.read_text()) for p in folder.glob("prompt@*.json")]
    return sorted(found, key=lambda r: r["search_round"])


def best_of(folder: Path) -> dict[str, Any]:
    best: dict[str, Any] = json.loads((folder / "summary.json").read_text())["prompts"][0]["best"]
    return best


def test_a_random_search_writes_every_video_and_judges_see_its_very_frames(
    checkpoint: Any, tmp_path: Path
) -> None:
    folder = ran(tmp_path, checkpoint)
    rows = rows_of(folder)
    assert [row["round"] for row in rows] == [1] * 2 + [2] * 4
    assert sorted(row["path"] for row in rows) == sorted(p.name for p in folder.glob("*.mp4"))
    for row in rows:
        seen = probe(folder / row["path"])
        side = checkpoint[1]["height"]
        assert (seen.frames, seen.fps, seen.size) == (9, 8, (side, side))
        assert row["batch_size"] == 1
        # Random weights make noise, of which MP4 keeps little: what is read back was not judged.
        assert motion(read_frames(folder / row["path"])) < row["score"]
    records = rounds_of(folder)
    assert len(records) == 2
    for record in records:
        assert record["best_img_path"].endswith(".mp4") and Path(record["best_img_path"]).is_file()
        assert record["judges"]["tests.graders:Motion"]["motion"] == record["best_score"]
        assert record["judges"]["contrast"]["contrast"] > 0
    best = best_of(folder)
    assert best["score"] == max(row["score"] for row in rows)
    assert Motion.chosen == [best["score"]] * 2  # the verifier and the judge of its kind


def test_a_zero_order_search_keeps_the_videos_of_rounds_that_improve(
    checkpoint: Any, tmp_path: Path
) -> None:
    folder = ran(tmp_path, checkpoint, search_args={**ZERO_ORDER, "search_rounds": 3})
    rows, records = rows_of(folder), rounds_of(folder)
    assert records, "no round improved: choose another seed"
    kept = {row["path"] for row in rows if row["path"]}
    assert kept == {p.name for p in folder.glob("*.mp4")}
    for record in records:
        assert record["judges"]["tests.graders:Motion"]["motion"] == record["best_score"]
    assert Motion.chosen == [best_of(folder)["score"]] * 2


def test_a_winner_of_an_earlier_round_is_copied(checkpoint: Any, tmp_path: Path) -> None:
    grader = {"name": "tests.graders:FallingVideos"}
    search = {**RANDOM, "pool": "nested"}
    folder = ran(tmp_path, checkpoint, verifier_args=grader, search_args=search)
    first, second = (Path(r["best_img_path"]) for r in rounds_of(folder))
    assert first.suffix == second.suffix == ".mp4"
    assert first.read_bytes() == second.read_bytes()


def test_running_it_again_gives_the_same_files(checkpoint: Any, tmp_path: Path) -> None:
    one, two = (ran(tmp_path / name, checkpoint, judges=[]) for name in ("one", "two"))
    names = sorted(p.name for p in one.glob("*.mp4"))
    assert names == sorted(p.name for p in two.glob("*.mp4"))
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)


def test_a_video_that_fades_in_from_black_is_judged() -> None:
    from experiment.evaluate import _fault

    black = Image.new("RGB", (16, 16))
    assert _fault([black, *waves(2, 16, 16)], finite=True, filtered=False) is None
    fault = _fault([black, black], finite=True, filtered=False)
    assert fault is not None and fault.status == "invalid_image"


# Pictures of runs.


def test_a_run_has_its_collage_as_a_video_and_as_a_contact_sheet(
    checkpoint: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ran(tmp_path, checkpoint, judges=[])
    capsys.readouterr()
    assert main(["--path", str(folder), "--per_round"]) == 0
    shown, warned = capsys.readouterr()
    assert warned == ""
    stem = "a_red_circle_i@"
    assert sorted(Path(line).name for line in shown.splitlines()) == [
        f"collage_{stem}1-2.mp4", f"collage_{stem}1-2.png", f"round_{stem}1.png",
        f"round_{stem}2.png",
    ]  # fmt: skip
    seen = probe(folder / f"collage_{stem}1-2.mp4")
    assert (seen.frames, seen.fps) == (9, 8)


def fake_run(folder: Path, lengths: Sequence[int], side: int = 96, fps: int = 12) -> list[Path]:
    """A run folder as tt-scale-flux writes it; the second round is the best."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, length in enumerate(lengths, 1):
        stem = f"{prompt_stem(PROMPT)}_i@{number}_s@{number}"
        record = {"prompt": PROMPT, "search_round": number, "num_noises": 1, "best_score":
                  0.9 if number == 2 else 0.1 * number, "choice_of_metric": "motion",
                  "best_img_path": f"output/{stem}.mp4"}  # fmt: skip
        (folder / f"{stem}.json").write_text(json.dumps(record))
        frames = waves(length, side, side, phase=number)
        paths.append(written(folder / f"{stem}.mp4", frames, fps))
    return paths


def near(pixel: Any, color: tuple[int, int, int]) -> bool:
    return bool(np.abs(np.subtract(pixel, color)).max() < 12)


def columns_of(frame: Image.Image, row: int) -> list[int]:
    return [x for x in range(frame.width) if near(frame.getpixel((x, row)), drawing.WINNER)]


def test_a_film_plays_all_videos_and_holds_the_last_frame_of_those_that_end(tmp_path: Path) -> None:
    fake_run(tmp_path, [13, 5, 9])
    assert main(["--path", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("collage_*.mp4")
    assert (probe(path).frames, probe(path).fps) == (13, 12)
    frames = [np.asarray(f, dtype=int) for f in read_frames(path)]
    bottom, gap = frames[0].shape[0] - 20, 6
    lefts = [gap + i * (96 + gap) for i in range(3)]

    def moved(tile: int, a: int, b: int) -> bool:
        span = slice(lefts[tile] + 8, lefts[tile] + 88)
        return bool(np.abs(frames[a][bottom, span] - frames[b][bottom, span]).mean() > 3)

    assert [moved(tile, 0, 4) for tile in range(3)] == [True, True, True]
    assert [moved(tile, 4, 12) for tile in range(3)] == [True, False, True]
    assert [moved(tile, 8, 12) for tile in range(3)] == [True, False, False]


def test_a_films_winner_is_framed_in_every_frame(tmp_path: Path) -> None:
    fake_run(tmp_path, [5, 5, 5])
    main(["--path", str(tmp_path)])
    (path,) = tmp_path.glob("collage_*.mp4")
    for frame in read_frames(path):
        framed = columns_of(frame, frame.height - 20)
        assert framed and all(100 <= x <= 206 for x in framed)  # around the second of three


def test_a_contact_sheet_has_a_row_of_five_keyframes_a_round(tmp_path: Path) -> None:
    fake_run(tmp_path, [9, 9, 9])
    main(["--path", str(tmp_path)])
    (path,) = tmp_path.glob("collage_*.png")
    sheet = Image.open(path)
    assert sheet.width == 5 * (96 + 6) + 6
    rows = [sheet.height - 20 - i * (96 + 6) for i in range(3)]
    assert [bool(columns_of(sheet, row)) for row in rows] == [False, True, False]
    gaps = [6 + i * (96 + 6) - 2 for i in range(1, 5)]
    assert all(near(sheet.getpixel((x, rows[1])), drawing.WINNER) for x in gaps)


def test_keyframes_of_a_short_video_fill_its_row(tmp_path: Path) -> None:
    fake_run(tmp_path, [3, 1])
    main(["--path", str(tmp_path)])
    (path,) = tmp_path.glob("collage_*.png")
    assert Image.open(path).width == 3 * (96 + 6) + 6


def test_videos_that_cannot_be_read_are_named_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn, missing, _ = fake_run(tmp_path, [5, 5, 5])
    torn.write_bytes(torn.read_bytes()[:700])
    missing.unlink()
    assert main(["--path", str(tmp_path)]) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert f"{torn.name} is left out: it cannot be read as MP4" in warnings[0]
    assert f"{missing.name} is left out: there is no such file" in warnings[1]
    assert len(list(tmp_path.glob("collage_*.mp4"))) == 1


def test_a_folder_of_unreadable_videos_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in fake_run(tmp_path, [2, 2]):
        path.write_bytes(b"")
    assert main(["--path", str(tmp_path)]) == 2
    assert "None of the images or videos" in capsys.readouterr().err


@pytest.mark.parametrize("side", [2, 17])
def test_small_and_odd_videos_are_drawn(side: int, tmp_path: Path) -> None:
    fake_run(tmp_path, [2, 2], side=side)
    assert main(["--path", str(tmp_path), "--per_round"]) == 0
