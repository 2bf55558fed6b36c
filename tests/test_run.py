"""Whole runs on the bundled model: what is written, and that it is true."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from experiment.config import parse_config
from experiment.runner import run
from main import main
from utils import UserError

PROMPT = "a red circle left of a blue square"
STEPS = 2


def config(**changes: Any) -> dict[str, Any]:
    content = json.loads(Path("configs/shapes_flux.json").read_text())
    content["pipeline_call_args"]["num_inference_steps"] = STEPS
    content["verifier_args"] = {"name": "tests.graders:Brightness"}
    content["prompt"] = PROMPT
    content["judges"] = []
    return {**content, **changes}


def on_stable_diffusion(steps: int) -> dict[str, Any]:
    """What makes a config one of the other bundled pipeline: a U-Net, classifier-free guidance."""
    own = json.loads(Path("configs/shapes_sd.json").read_text())
    call = {**own["pipeline_call_args"], "num_inference_steps": steps}
    keys = ("pretrained_model_name_or_path", "torch_dtype")
    return {"pipeline_call_args": call, **{key: own[key] for key in keys}}


def ran(root: Path, **changes: Any) -> Path:
    return run(parse_config(config(**changes)), str(root)).folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(p.read_text()) for p in folder.glob("prompt@*.json")]
    return sorted(found, key=lambda r: (r["prompt_index"], r["search_round"]))


def results(folder: Path) -> dict[str, Any]:
    """A run's files without what may differ between equal runs: times and the folder's name."""
    content: dict[str, Any] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".png":
            content[path.name] = path.read_bytes()
    content["rows"] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(folder)]
    content["rounds"] = [{**r, "best_img_path": ""} for r in rounds_of(folder)]
    return content


@pytest.fixture(scope="module")
def random_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    judges = [{"name": "shapes_oracle"}, {"name": "tests.graders:Brightness", "sign": -1.0}]
    return ran(tmp_path_factory.mktemp("random"), judges=judges)


def test_four_rounds_write_thirty_images_and_four_records(random_run: Path) -> None:
    assert random_run.parts[-4:-1] == ("shapes-flux", "tests.graders_Brightness", "brightness")
    counts = {r: len(list(random_run.glob(f"prompt@*_i@{r}_s@*.png"))) for r in (1, 2, 3, 4)}
    assert counts == {1: 2, 2: 4, 3: 8, 4: 16}
    assert len(rows_of(random_run)) == 30
    assert [(r["search_round"], r["num_noises"]) for r in rounds_of(random_run)] == [
        (1, 2), (2, 4), (3, 8), (4, 16),
    ]  # fmt: skip
    names = {p.name for p in random_run.iterdir() if not p.name.startswith("prompt@")}
    assert names == {"config.json", "manifest.json", "candidates.jsonl", "summary.json"}


def test_a_rounds_record_has_tt_scale_fluxs_fields_first_and_names_the_best(
    random_run: Path,
) -> None:
    rows = rows_of(random_run)
    for record in rounds_of(random_run):
        assert list(record)[:7] == [
            "prompt", "search_round", "num_noises", "best_noise_seed", "best_score",
            "choice_of_metric", "best_img_path",
        ]  # fmt: skip
        mine = [row for row in rows if row["round"] == record["search_round"]]
        assert record["best_score"] == max(row["score"] for row in mine)
        assert Path(record["best_img_path"]).is_file()
        json_name = Path(record["best_img_path"]).with_suffix(".json")
        assert json_name.is_file()
        assert f"_i@{record['search_round']}_s@{record['best_noise_seed']}." in json_name.name


def test_rows_and_summary_add_up(random_run: Path) -> None:
    rows = rows_of(random_run)
    summary = json.loads((random_run / "summary.json").read_text())
    assert summary["total"]["nfe"] == sum(row["nfe"] for row in rows) == 30 * STEPS
    assert summary["total"]["rows"] == sum(row["rows"] for row in rows) == 30 * STEPS
    best = summary["prompts"][0]["best"]
    assert best["score"] == max(row["score"] for row in rows)
    assert summary["prompts"][0]["statuses"] == {"ok": 30}
    assert {row["batch_size"] for row in rows} == {2, 4, 8}
    assert len({row["seed"] for row in rows}) == 30


def test_the_score_is_the_pictures(random_run: Path) -> None:
    for row in rows_of(random_run):
        pixels = np.asarray(Image.open(random_run / row["path"]), dtype=np.float64)
        assert row["score"] == pytest.approx(pixels.mean() / 255)


def test_judges_score_the_winners_and_never_choose(random_run: Path) -> None:
    winners = {r["best_id"] for r in rounds_of(random_run)}
    for row in rows_of(random_run):
        assert bool(row["judges"]) == (row["id"] in winners)
    judged = rounds_of(random_run)[0]["judges"]
    assert set(judged) == {"shapes_oracle", "tests.graders:Brightness"}
    # The second judge prefers dark images, and yet the brightest won.
    assert (
        judged["tests.graders:Brightness"]["brightness"] == -rounds_of(random_run)[0]["best_score"]
    )


def test_running_the_saved_config_repeats_the_run(random_run: Path, tmp_path: Path) -> None:
    saved = str(random_run / "config.json")
    assert main(["--pipeline_config_path", saved, "--output_dir", str(tmp_path)]) == 0
    again = next(tmp_path.glob("*/*/*/*"))
    assert results(again) == results(random_run)
    other = ran(tmp_path / "other", seed=1)
    assert results(other)["rows"] != results(random_run)["rows"]


def test_a_winner_can_be_made_again_in_plain_diffusers(random_run: Path) -> None:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained("shapes/models/shapes-flux", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    args = config()["pipeline_call_args"]
    rows = [row for row in rows_of(random_run) if row["round"] == 3]
    generators = [torch.Generator("cpu").manual_seed(row["seed"]) for row in rows]
    images = pipe([PROMPT] * len(rows), generator=generators, **args).images
    for row, image in zip(rows, images, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(random_run / row["path"])))
    alone = pipe(PROMPT, generator=torch.Generator("cpu").manual_seed(rows[0]["seed"]), **args)
    apart = np.asarray(alone.images[0], dtype=int) - np.asarray(images[0], dtype=int)
    assert np.abs(apart).max() <= 1  # of 255: batch sizes round differently


def test_the_manifest_says_what_it_ran_on(random_run: Path) -> None:
    manifest = json.loads((random_run / "manifest.json").read_text())
    assert manifest["packages"]["torch"] == torch.__version__
    assert manifest["pipeline"] == "FluxPipeline"
    assert manifest["scheduler"]["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    assert manifest["weights"].startswith("files:")
    assert manifest["device"].startswith("cpu")


def test_a_rejected_round_leaves_only_the_best_so_far(tmp_path: Path) -> None:
    search = {"search_method": "zero-order", "search_rounds": 3, "num_neighbors": 2}
    folder = ran(tmp_path, search_args=search, verifier_args={"name": "tests.graders:Falling"})
    rows = rows_of(folder)
    assert len(rows) == 9  # each round a fresh pivot and two worse neighbours
    assert rounds_of(folder) == []
    assert [row["path"] for row in rows[1:]] == [None] * 8
    assert [p.name for p in folder.glob("*.png")] == [rows[0]["path"]]
    best = json.loads((folder / "summary.json").read_text())["prompts"][0]["best"]
    assert best["path"] == rows[0]["path"]


def test_an_improving_zero_order_round_is_kept_whole(tmp_path: Path) -> None:
    search = {"search_method": "zero-order", "search_rounds": 4, "num_neighbors": 3,
              "threshold": 0.9, "on_reject": "resample"}  # fmt: skip
    folder = ran(tmp_path, search_args=search)
    rows = rows_of(folder)
    records = rounds_of(folder)
    assert records, "no round improved: choose another seed"
    for record in records:
        mine = [row for row in rows if row["round"] == record["search_round"]]
        assert record["num_noises"] == 4
        assert all(row["path"] for row in mine)
    scores = [record["best_score"] for record in records]
    assert scores == sorted(scores)
    neighbour = next(row for row in rows if row["recipe"]["op"] == "perturb")
    assert neighbour["parents"] and neighbour["recipe"]["cosine"] == 0.9


def test_a_nested_pool_keeps_its_best_from_earlier_rounds(tmp_path: Path) -> None:
    search = {"search_method": "random", "search_rounds": 3, "pool": "nested"}
    folder = ran(tmp_path, search_args=search, verifier_args={"name": "tests.graders:Falling"})
    assert len(rows_of(folder)) == 8
    records = rounds_of(folder)
    assert [r["num_noises"] for r in records] == [2, 4, 8]
    assert len({r["best_noise_seed"] for r in records}) == 1
    assert records[0]["best_score"] == {"explanation": "worse than the last", "score": -1.0}
    pictures = [Path(r["best_img_path"]).read_bytes() for r in records]
    assert pictures[0] == pictures[1] == pictures[2]


@pytest.mark.parametrize("name", ["Halving", "Noisy"])
def test_every_row_can_be_traced_back_to_a_drawn_noise(tmp_path: Path, name: str) -> None:
    search = {"search_method": f"tests.searches:{name}", "search_rounds": 1}
    folder = ran(tmp_path, search_args=search)
    rows = rows_of(folder)
    seeds = {row["seed"] for row in rows}
    assert {row["step"] for row in rows} == {rows[0]["steps"] // 2, rows[0]["steps"]}
    for row in rows[4:]:
        fork = row["recipe"]["of"]
        assert [row["recipe"]["op"], fork["op"], fork["of"]["op"]] == ["perturb", "fork", "renoise"]
        assert fork["of"]["of"] in seeds


@pytest.mark.slow
def test_deterministic_keeps_torch_to_algorithms_that_are(tmp_path: Path) -> None:
    whole = json.loads((ran(tmp_path / "a") / "config.json").read_text())
    assert not whole["engine_args"]["deterministic"]
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        folder = ran(tmp_path / "b", engine_args={"deterministic": True})
        assert torch.are_deterministic_algorithms_enabled()
        assert json.loads((folder / "config.json").read_text())["engine_args"]["deterministic"]
    finally:
        torch.use_deterministic_algorithms(False)


def test_rows_can_be_the_budget(tmp_path: Path) -> None:
    """With guidance an NFE takes two rows: 41 rows pay for 10 images of 2 steps, and no more."""
    call = {"num_inference_steps": 2, "guidance_scale": 4.0, "height": 32, "width": 32}
    folder = ran(
        tmp_path,
        pretrained_model_name_or_path="shapes/models/shapes-sd",
        pipeline_call_args=call,
        budget={"rows": 41},
    )
    rows = rows_of(folder)
    assert [(row["nfe"], row["rows"]) for row in rows] == [(2, 4)] * 10


@pytest.mark.slow
def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot finish one image of 2 rows"):
        ran(tmp_path, budget={"rows": 1}, pipeline_call_args={"num_inference_steps": 2})


@pytest.mark.slow
def test_a_scheduler_with_an_infinite_setting_is_written_down(tmp_path: Path) -> None:
    folder = ran(
        tmp_path,
        pretrained_model_name_or_path="shapes/models/shapes-sd",
        pipeline_call_args={"num_inference_steps": 2},
        scheduler={"_class_name": "DPMSolverMultistepScheduler"},
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["scheduler"]["lambda_min_clipped"] == "-inf"


def test_missing_scores_are_recorded_and_never_win(tmp_path: Path) -> None:
    grader = {"name": "tests.graders:Brightness", "every": 2}
    folder = ran(tmp_path, verifier_args=grader)
    rows = rows_of(folder)
    assert [row["status"] for row in rows] == ["ok", "unscored"] * 15
    assert all(row["score"] is None and row["explanation"] for row in rows[1::2])
    assert json.loads((folder / "summary.json").read_text())["prompts"][0]["statuses"] == {
        "ok": 15,
        "unscored": 15,
    }


def test_a_verifier_that_never_answers_leaves_images_and_no_winner(tmp_path: Path) -> None:
    folder = ran(tmp_path, verifier_args={"name": "tests.graders:Brightness", "every": 1})
    assert rounds_of(folder) == []
    assert len(list(folder.glob("*.png"))) == 30
    assert json.loads((folder / "summary.json").read_text())["prompts"][0]["best"] is None


def test_a_budget_in_nfe_is_spent_and_never_exceeded(tmp_path: Path) -> None:
    search = {"search_method": "random"}
    folder = ran(tmp_path, search_args=search, budget={"nfe": 11 * STEPS + 1})
    rows = rows_of(folder)
    assert [row["round"] for row in rows] == [1] * 2 + [2] * 4 + [3] * 5
    assert json.loads((folder / "summary.json").read_text())["total"]["nfe"] == 11 * STEPS


def test_weights_of_several_metrics(tmp_path: Path) -> None:
    grader = {"name": "tests.graders:Brightness",
              "choice_of_metric": {"brightness": 1.0, "darkness": 3.0}}  # fmt: skip
    search = {"search_method": "random", "search_rounds": 1}
    folder = ran(tmp_path, verifier_args=grader, search_args=search)
    assert folder.parent.name == "brightness+darkness"
    for row in rows_of(folder):
        gave = row["scores"]["tests.graders:Brightness"]
        assert row["score"] == pytest.approx(gave["brightness"] + 3 * gave["darkness"])


def test_previews_are_scored_recorded_and_never_win(tmp_path: Path) -> None:
    """Four noises to the middle, the better two a step back and on to the end: 2 steps of 4 each,
    then 3."""
    call = {**config()["pipeline_call_args"], "num_inference_steps": 4}
    search = {"search_method": "tests.searches:Halving", "search_rounds": 1}
    folder = ran(tmp_path, search_args=search, pipeline_call_args=call)
    rows = rows_of(folder)
    assert [(row["step"], row["nfe"], bool(row["path"])) for row in rows] == (
        [(2, 2, False)] * 4 + [(4, 3, True)] * 2
    )
    previews = sorted(rows[:4], key=lambda row: -row["score"])
    assert [row["parents"] for row in rows[4:]] == [[previews[0]["id"]], [previews[1]["id"]]]
    (record,) = rounds_of(folder)
    assert record["num_noises"] == 2 and record["best_id"] in (4, 5)
    assert json.loads((folder / "summary.json").read_text())["total"]["nfe"] == 4 * 2 + 2 * 3
    assert len(list(folder.glob("*.png"))) == 2


@pytest.mark.slow
def test_a_verifier_may_ask_for_a_preview_of_each_finished_image(tmp_path: Path) -> None:
    """At no NFE of its own, and without changing the images."""
    search = {"search_method": "random", "search_rounds": 2}
    call = {**config()["pipeline_call_args"], "num_inference_steps": 6}
    common = {"search_args": search, "pipeline_call_args": call}
    grader = {"name": "tests.graders:Settled"}
    late = ran(tmp_path / "late", verifier_args={**grader, "noise": 0.3}, **common)
    soon = ran(tmp_path / "soon", verifier_args={**grader, "noise": 0.9}, **common)
    plain = ran(tmp_path / "plain", **common)
    for row, other, same in zip(rows_of(late), rows_of(soon), rows_of(plain), strict=True):
        assert row["score"] > other["score"]  # nearer its end a picture changes less
        assert row["nfe"] == row["rows"] == same["nfe"] == 6
        assert (late / row["path"]).read_bytes() == (plain / same["path"]).read_bytes()


def test_a_replaced_scheduler_with_a_history_runs_whole(tmp_path: Path) -> None:
    """PNDM takes a step more than it is asked for, and costs it."""
    content = json.loads(Path("configs/shapes_sd.json").read_text())
    content["pipeline_call_args"]["num_inference_steps"] = 5
    content["scheduler"] = {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
    content |= {"prompt": PROMPT, "search_args": {"search_rounds": 1}}
    folder = run(parse_config(content), str(tmp_path)).folder
    assert [(row["nfe"], row["rows"]) for row in rows_of(folder)] == [(6, 12)] * 2
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["scheduler"]["_class_name"] == "PNDMScheduler"


HARD = [
    "a red circle 🎨🔥",
    "quotes \" and ' and `",
    "../../etc/passwd / \\ C:\\nul",
    "word " * 1000,
    "赤い円と青い四角",
    "دائرة حمراء",
    "a red circle",
    "a red circle",
    "A red circle",
    "tab and \u2028 separator",
    "...",
]


@pytest.mark.slow
def test_hard_prompts_stay_in_the_folder_and_share_no_files(tmp_path: Path) -> None:
    listing = tmp_path / "prompts.txt"
    listing.write_text("\n".join(HARD) + "\n\n", encoding="utf-8")
    search = {"search_method": "random", "search_rounds": 1}
    changes = {"prompt": None, "prompts": str(listing), "num_prompts": "all"}
    folder = ran(tmp_path / "out", search_args=search, **changes)
    everything = {p for p in tmp_path.rglob("*") if p.is_file()} - {listing}
    assert all(p.parent == folder for p in everything)
    assert len(list(folder.glob("*.png"))) == 2 * len(rounds_of(folder)) == 2 * 11
    paths = [row["path"] for row in rows_of(folder)]
    assert len({p.lower() for p in paths}) == 22  # also where case does not count
    twins = [row["seed"] for row in rows_of(folder) if row["prompt"] == "a red circle"]
    assert len(set(twins)) == 4


def test_newlines_and_control_characters_in_a_prompt(tmp_path: Path) -> None:
    search = {"search_method": "random", "search_rounds": 1}
    folder = ran(tmp_path, prompt="two\nlines\tand\x00more", search_args=search)
    assert [row["prompt"] for row in rows_of(folder)] == ["two\nlines\tand\x00more"] * 2


@pytest.mark.slow
def test_guidance_doubles_the_rows(tmp_path: Path) -> None:
    flags = ["--pipeline_config_path=configs/shapes_sd.json", f"--prompt={PROMPT}"]
    assert main([*flags, f"--output_dir={tmp_path}"]) == 0
    folder = next(tmp_path.glob("shapes-sd/clip/clip_score/*"))
    total = json.loads((folder / "summary.json").read_text())["total"]
    assert (total["nfe"], total["rows"]) == (600, 1200)
    assert len(list(folder.glob("*.png"))) == 30


@pytest.mark.slow
def test_search_finds_what_a_single_image_misses(tmp_path: Path) -> None:
    """Best of 16 by CLIP against the first image, judged by the oracle over 12 prompts."""
    search = {"search_method": "random", "search_rounds": 4, "pool": "nested"}
    content = json.loads(Path("configs/shapes_flux.json").read_text())
    content |= {"search_args": search, "num_prompts": 12}
    folder = run(parse_config(content), str(tmp_path)).folder
    from shapes.oracle import judge

    def right(row: dict[str, Any]) -> bool:
        return judge(Image.open(folder / row["path"]), row["prompt"]).right

    rows = rows_of(folder)
    first = [right(row) for row in rows if row["id"] == 0]
    summary = json.loads((folder / "summary.json").read_text())["prompts"]
    best = [right({**p["best"], "prompt": p["prompt"]}) for p in summary]
    assert sum(best) >= sum(first) + 2  # measured on 48 prompts: half right at first, 4 in 5 after


SHORT = [
    "--pipeline_config_path=configs/shapes_flux.json",
    "--prompt=a red circle",
    "--set=pipeline_call_args.num_inference_steps=2",
    "--set=search_args.search_rounds=2",
]


@pytest.mark.slow
def test_a_terminal_sees_progress_and_a_pipe_does_not(tmp_path: Path) -> None:
    command = [sys.executable, "main.py", *SHORT, f"--output_dir={tmp_path}"]
    piped = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "NFE/s" not in piped.stderr and "%|" not in piped.stderr
    assert "round 2" in piped.stdout

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs) as child:
        os.close(theirs)
        seen = b""
        while chunk := _read(ours):
            seen += chunk
    assert child.returncode == 0
    assert b"NFE" in seen and b"best=" in seen and b"prompts: 100%" in seen


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # the other end has closed
        return b""
