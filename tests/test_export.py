"""Exports of run folders, read back by those for whom they are written."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import process_results
from experiment import export, packages, results_flags
from experiment.config import load_config
from experiment.export_read import Notes, samples_of
from experiment.runner import run as run_search
from tests.fake_hub import Hub, hub_here
from tests.families import FAMILIES
from tests.test_tt_tree import write_tree
from utils import ROOT, prompt_stem

PROMPTS = ("a red cat", "two dogs")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path_factory.mktemp("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


class Run:
    """A fake run folder. A candidate's picture has the brightness of its seed."""

    def __init__(self, folder: Path, prompts: tuple[str, ...] = PROMPTS) -> None:
        folder.mkdir(parents=True)
        self.folder, self.prompts, self.rows = folder, prompts, 0
        self.best: dict[int, str] = {}

    def add(self, index: int, score: Any, seed: int, **more: Any) -> Path:
        prompt = self.prompts[index]
        path = self.folder / f"{prompt_stem(prompt)}_i@1_s@{seed}.png"
        Image.new("RGB", (64, 64), (seed, seed, seed)).save(path)
        self.row(
            prompt=prompt, prompt_index=index, seed=seed, score=score, path=path.name,
            scores={"clip": {"clip_score": score}}, status="unscored" if score is None else "ok",
            **more,
        )  # fmt: skip
        return path

    def row(self, **fields: Any) -> None:
        row = {"id": self.rows, "round": 1, "step": 4, "steps": 4, "judges": {}, **fields}
        self.rows += 1
        self.write(json.dumps(row))

    def write(self, line: str) -> None:
        with open(self.folder / "candidates.jsonl", "a") as file:
            file.write(line + "\n")

    def finish(self, best: dict[int, Path], categories: dict[int, str]) -> None:
        prompts = [
            {"prompt": prompt, "prompt_index": i, "category": categories.get(i),
             "best": {"path": best[i].name} if i in best else None}
            for i, prompt in enumerate(self.prompts)
        ]  # fmt: skip
        (self.folder / "summary.json").write_text(json.dumps({"prompts": prompts}))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two prompts with five and three images; of the first prompt's one is judged."""
    run = Run(tmp_path / "model" / "clip" / "clip_score" / "20260101_120000")
    judged = {1: {"aesthetic": {"beauty": 6.5}}}
    images = [
        run.add(0, score, 10 + number, judges=judged.get(number, {}))
        for number, score in enumerate((0.5, 0.9, 0.1, 0.7, 0.3))
    ]
    for number, score in enumerate((2, 1, 1)):
        run.add(1, score, 20 + number)
    run.finish({0: images[1]}, {0: "Colors"})
    return run


def exported(*arguments: object) -> int:
    return process_results.main(["--path", *map(str, arguments)])


def grey(image: Any) -> int:
    if isinstance(image, bytes):
        image = Image.open(io.BytesIO(image))
    colour = np.asarray(image.convert("RGB"))
    assert colour.min() == colour.max()
    return int(colour.min())


def loaded(*arguments: Any, **options: Any) -> Any:
    return datasets.load_dataset(*arguments, split="train", **options)


def test_the_flag_offers_what_there_is() -> None:
    assert tuple(export.KINDS) == results_flags.EXPORTS


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_images_and_their_records_load_back(run: Run, kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert exported(run.folder, "--export", kind, "--output", out) == 0
    how = ("imagefolder",) if kind == "imagefolder" else ("parquet",)
    data = loaded(*how, data_dir=str(out))
    assert len(data) == 8
    assert (
        [grey(row["image"]) for row in data] == data["seed"][:] == [10, 11, 12, 13, 14, 20, 21, 22]
    )
    assert data["score"][:] == [0.5, 0.9, 0.1, 0.7, 0.3, 2.0, 1.0, 1.0]
    assert data["prompt"][:] == [PROMPTS[0]] * 5 + [PROMPTS[1]] * 3
    assert data["category"][:] == ["Colors"] * 5 + [None] * 3
    assert [row["scores"]["clip"]["clip_score"] for row in data] == data["score"][:]
    assert [row["judges"]["aesthetic"]["beauty"] for row in data] == [None, 6.5] + [None] * 6
    assert data["chosen"][:] == [False, True] + [False] * 6
    assert set(data["run"]) == {"model/clip/clip_score/20260101_120000"}
    assert isinstance(data.features["image"], datasets.Image)


def test_the_whole_parquet_folder_loads_by_its_path(run: Run, tmp_path: Path) -> None:
    assert exported(run.folder, "--export", "parquet", "--output", tmp_path / "out") == 0
    assert len(loaded(str(tmp_path / "out"))) == 8


def test_an_export_lands_in_its_run_and_is_no_result_of_it(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exported(run.folder, "--export", "imagefolder") == 0
    folder = run.folder / "export_imagefolder"
    assert capsys.readouterr().out.strip() == str(folder)
    assert len(list((folder / "images").iterdir())) == 8
    assert exported(run.folder, "--export", "imagefolder") == 2
    assert "is there already" in capsys.readouterr().err
    assert len(samples_of([run.folder], Notes())) == 8


def test_several_runs_make_one_export(run: Run, tmp_path: Path) -> None:
    other = Run(tmp_path / "other")
    other.add(0, 0.4, 99)
    assert (
        exported(run.folder, other.folder, "--export", "parquet", "--output", tmp_path / "x") == 0
    )
    data = loaded("parquet", data_dir=str(tmp_path / "x"))
    assert len(data) == 9 and len(set(data["run"])) == 2


def test_what_is_damaged_is_left_out_counted_and_named(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = run.add(1, 3.0, 30)
    torn.write_bytes(torn.read_bytes()[:60])
    run.add(1, 3.0, 31).unlink()
    run.add(1, None, 32)
    run.write('{"id": 2, "prom')  # line 12
    run.write("[1]")
    run.write("[" * 3000)  # deeper than Python reads
    run.row(prompt=7, prompt_index=0, seed=1, score=1.0, status="ok", path="x.png")
    run.row(prompt="a", prompt_index="?", seed=1, score=1.0, status="ok", path="x.png")
    run.row(prompt="a", prompt_index=0, seed=1, score=1.0, status="ok", path="../../elsewhere.png")
    run.row(prompt="a", prompt_index=0, seed=1, score=0.4, status="ok", path=None)  # a preview
    Image.new("RGB", (8, 8)).save(run.folder.parents[1] / "elsewhere.png")
    (run.folder / "prompt@x_hash@1_i@1_s@1.json").write_text("{")
    assert exported(run.folder, "--export", "imagefolder", "--output", tmp_path / "out") == 0
    assert len(loaded("imagefolder", data_dir=str(tmp_path / "out"))) == 8
    lines = capsys.readouterr().err.splitlines()
    (damaged,) = [line for line in lines if "left out, damaged" in line]
    assert "8 left out, damaged" in damaged and "and 3 more" in damaged
    assert "prompt@x_hash@1_i@1_s@1.json" in damaged and torn.name in damaged
    assert any("1 left out, without a score" in line and "s@32" in line for line in lines)
    assert any("1 left out, outside" in line and "elsewhere.png" in line for line in lines)


def test_rows_keep_one_shape_whatever_the_verifiers_gave(run: Run, tmp_path: Path) -> None:
    run.row(
        prompt=PROMPTS[0], prompt_index=0, seed=10, score=0.5, status="ok",
        path=f"{prompt_stem(PROMPTS[0])}_i@1_s@10.png",
        scores={"vqa": {"vqa_score": None}, "clip": {"clip_score": 1, "other": 0}},
    )  # fmt: skip
    for kind in ("imagefolder", "parquet"):
        out = tmp_path / kind
        assert exported(run.folder, "--export", kind, "--output", out) == 0
        data = loaded(kind, data_dir=str(out))
        assert len(data) == 8  # scored again: one image, its last scores
        scores = {row["seed"]: row["scores"]["clip"] for row in data}
        assert scores[10] == {"clip_score": 1.0, "other": 0.0}
        assert scores[11] == {"clip_score": 0.9, "other": None}


def test_a_search_is_exported_as_its_records_tell(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("Prompts,Category\na red circle,one\na blue ring,two\n")
    keys = {
        "prompts": str(path), "search_args": {"search_method": "zero-order", "num_neighbors": 2,
        "search_rounds": 3}, "pipeline_call_args.num_inference_steps": 2,
        "pipeline_call_args.height": 64, "pipeline_call_args.width": 64,
        "verifier_args": {"name": "contrast"}, "judges": [{"name": "shapes_oracle"}],
    }  # fmt: skip
    folder = run_search(load_config("configs/shapes_flux.json", keys), str(tmp_path / "out")).folder
    rows = [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["path"]]
    summary = json.loads((folder / "summary.json").read_text())["prompts"]
    for kind in ("imagefolder", "parquet"):
        assert exported(folder, "--export", kind) == 0
        data = loaded(kind, data_dir=str(folder / f"export_{kind}"))
        assert [(r["seed"], r["score"]) for r in data] == [(r["seed"], r["score"]) for r in kept]
        for row, record in zip(data, kept, strict=True):
            with Image.open(folder / record["path"]) as image:
                assert np.array_equal(np.asarray(row["image"]), np.asarray(image))
        assert set(data["category"]) == {"one", "two"}
        assert [row["seed"] for row in data if row["chosen"]] == [
            p["best"]["seed"] for p in summary
        ]
        judged = [r["judges"]["shapes_oracle"]["oracle_score"] for r in data if r["chosen"]]
        assert judged == [p["best"]["judges"]["shapes_oracle"]["oracle_score"] for p in summary]


# ---- preferences


def test_pairs_are_the_best_with_the_worst_and_above_the_margin(run: Run, tmp_path: Path) -> None:
    expected = {
        0.0: {(11, 12), (13, 14), (20, 22)},  # of five the middle one is left over
        0.45: {(11, 12), (20, 22)},
        0.79: {(11, 12), (20, 22)},
        0.95: {(20, 22)},
    }
    for margin, wanted in expected.items():
        out = tmp_path / str(margin)
        flags = ("--export", "preferences", "--margin", margin, "--output", out)
        assert exported(run.folder, *flags) == 0
        data = loaded("parquet", data_dir=str(out))
        found = set()
        for row in data:
            images = (grey(row["jpg_0"]), grey(row["jpg_1"]))
            assert images == (row["seed_0"], row["seed_1"])
            assert row["label_0"] + row["label_1"] == 1
            assert (row["label_0"] == 1) == (row["score_0"] > row["score_1"])
            assert abs(row["score_0"] - row["score_1"]) > margin
            assert row["caption"] == PROMPTS[images[0] >= 20]
            found.add(images if row["label_0"] else images[::-1])
        assert found == wanted


def test_no_pair_above_the_margin_is_said(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--export", "preferences", "--output", tmp_path / "out")
    assert exported(run.folder, *flags, "--margin", 5) == 2
    assert "lower it" in capsys.readouterr().err
    assert exported(run.folder, *flags, "--margin", -1) == 2
    assert exported(run.folder, *flags, "--margin", "nan") == 2
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]


def test_equal_scores_make_no_pair_and_runs_are_not_compared(tmp_path: Path) -> None:
    for name, score in (("one", 0.1), ("two", 0.9)):
        run = Run(tmp_path / name)
        for seed in (1, 2, 3):
            run.add(0, score, seed)
    flags = ("--export", "preferences", "--output", tmp_path / "out")
    assert exported(tmp_path / "one", tmp_path / "two", *flags) == 2


def test_the_better_image_stands_first_about_half_the_time(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", tuple(f"prompt {n}" for n in range(60)))
    for index in range(60):
        run.add(index, 1.0, 1)
        run.add(index, 0.0, 2)
    assert exported(run.folder, "--export", "preferences", "--output", tmp_path / "out") == 0
    first = sum(loaded("parquet", data_dir=str(tmp_path / "out"))["label_0"])
    assert 15 <= first <= 45  # of a fair coin less likely than 1 in 10 000; the names are fixed


def test_trl_gets_both_images_a_question_and_two_answers(run: Run, tmp_path: Path) -> None:
    flags = ("--export", "preferences_trl", "--margin", 0.7, "--output", tmp_path / "out")
    assert exported(run.folder, *flags) == 0
    data = loaded("parquet", data_dir=str(tmp_path / "out"))
    assert data.column_names == ["images", "prompt", "chosen", "rejected"]
    for row in data:
        seeds = [grey(image) for image in row["images"]]
        (question,) = row["prompt"]
        assert question["role"] == "user"
        assert [part["type"] for part in question["content"]] == ["image", "image", "text"]
        assert PROMPTS[seeds[0] >= 20] in question["content"][-1]["text"]
        right, wrong = (row[name][0]["content"][0]["text"] for name in ("chosen", "rejected"))
        assert {right, wrong} == {"first", "second"}
        better = {11, 20}
        assert seeds[0 if right == "first" else 1] in better


def test_a_step_of_diffusion_dpo_prefers_the_better_images(tmp_path: Path) -> None:
    """Wallace et al. 2023, eq. 14, on the columns as diffusers' script reads them: the loss starts
    at log 2, where model and reference are the same, and a step favors the better images."""
    run = Run(tmp_path / "run")
    for index, score, brightness in ((0, 0.9, 250), (0, 0.1, 5), (1, 0.2, 60), (1, 0.8, 200)):
        run.add(index, score, brightness)
    assert exported(run.folder, "--export", "preferences", "--output", tmp_path / "out") == 0
    data = loaded("parquet", data_dir=str(tmp_path / "out"))
    pipe = FAMILIES["sd15"].build()
    generator = torch.Generator().manual_seed(0)

    def pixels(content: bytes) -> torch.Tensor:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        return torch.from_numpy(np.asarray(image) / 127.5 - 1).float().permute(2, 0, 1)

    better, worse = [], []
    for row in data:
        first, second = ("jpg_0", "jpg_1") if row["label_0"] == 1 else ("jpg_1", "jpg_0")
        better.append(pixels(row[first]))
        worse.append(pixels(row[second]))
        assert grey(row[first]) in {250, 200} and grey(row[second]) in {5, 60}
    with torch.no_grad():
        both = torch.stack(better + worse)
        latents = pipe.vae.encode(both).latent_dist.mode() * pipe.vae.config.scaling_factor
        text, _ = pipe.encode_prompt(list(data["caption"]), "cpu", 1, False)
    pairs = len(data)
    noise = torch.randn(latents[:pairs].shape, generator=generator).repeat(2, 1, 1, 1)
    steps = torch.full((2 * pairs,), 100)
    noisy = pipe.scheduler.add_noise(latents, noise, steps)

    def errors() -> torch.Tensor:
        predicted = pipe.unet(noisy, steps, text.repeat(2, 1, 1)).sample
        return functional.mse_loss(predicted, noise, reduction="none").mean(dim=(1, 2, 3))

    def gain() -> torch.Tensor:
        """How much better than the reference the better images are predicted than the worse."""
        change = reference - errors()
        return change[:pairs] - change[pairs:]

    pipe.unet.requires_grad_(True)
    reference = errors().detach()
    loss = -functional.logsigmoid(2000 * gain()).mean()
    assert loss.item() == pytest.approx(np.log(2), abs=1e-4)
    loss.backward()
    torch.optim.SGD(pipe.unet.parameters(), lr=1e-4).step()
    with torch.no_grad():
        assert gain().mean() > 1e-6


# ---- benchmarks


def geneval_file(path: Path, prompts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"tag": "colors", "include": [{"class": "cat", "count": 1}], "prompt": p} for p in prompts
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_geneval_gets_numbered_folders_that_its_scorer_reads(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["another", PROMPTS[1], PROMPTS[0]]
    geneval_file(tmp_path / "prompt_sets/geneval/evaluation_metadata.jsonl", lines)
    (run.folder / "config.json").write_text('{"prompts": "geneval"}')
    out = tmp_path / "out"
    assert exported(run.folder, "--export", "geneval", "--output", out) == 0
    # As its evaluate_images.py goes through the folder.
    found = {}
    for name in sorted(os.listdir(out)):
        assert name.isdigit()
        metadata = json.loads((out / name / "metadata.jsonl").read_text())
        assert metadata["prompt"] == lines[int(name)] and metadata["include"]
        images = sorted(os.listdir(out / name / "samples"))
        assert all(re.match(r"\d+\.png", image) for image in images)
        found[name] = [grey(Image.open(out / name / "samples" / image)) for image in images]
    assert found == {"00001": [20, 21, 22], "00002": [11, 13, 10, 14]}  # the best first
    assert "1 with fewer than 4 images: 00001" in capsys.readouterr().err


def test_geneval_of_several_runs_takes_each_ones_choice_first(tmp_path: Path) -> None:
    path = geneval_file(tmp_path / "metadata.jsonl", [PROMPTS[0]])
    runs = []
    for number in range(4):
        run = Run(tmp_path / f"run{number}")
        run.add(0, 0.9, 100 + number)
        chosen = run.add(0, 0.5, 50 + number)  # as a rank ensemble's choice can have less
        run.finish({0: chosen}, {})
        (run.folder / "config.json").write_text(json.dumps({"prompts": str(path)}))
        runs.append(run.folder)
    assert exported(*runs, "--export", "geneval", "--output", tmp_path / "out") == 0
    folder = tmp_path / "out" / "00000" / "samples"
    assert [grey(Image.open(folder / f"{n:04d}.png")) for n in range(4)] == [50, 51, 52, 53]


def test_a_run_of_other_prompts_has_no_geneval_export(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--export", "geneval", "--output", tmp_path / "out")
    for config in ('{"prompts": "shapes/prompts.txt"}', "{", '{"prompts": null}'):
        (run.folder / "config.json").write_text(config)
        assert exported(run.folder, *flags) == 2
        assert "--set prompts=geneval" in capsys.readouterr().err
    path = geneval_file(tmp_path / "metadata.jsonl", ["neither of them"])
    (run.folder / "config.json").write_text(json.dumps({"prompts": str(path)}))
    assert exported(run.folder, *flags) == 2
    assert "None of the images" in capsys.readouterr().err


def test_t2i_compbench_gets_names_from_which_its_scorers_take_the_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ("a green bench and a blue bowl", "snake_case", "either/or", "x" * 250, "a round tin")
    run = Run(tmp_path / "run", prompts)
    for index in range(5):
        for number in range(12 if index == 0 else 2):
            run.add(index, number / 10, 10 * index + number)
    run.finish({}, {i: "color" if i < 4 else "shape" for i in range(5)})
    out = tmp_path / "out"
    assert exported(run.folder, "--export", "t2i_compbench", "--output", out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["color", "shape"]
    names = sorted(os.listdir(out / "color" / "samples"))
    # As its BLIP_vqa.py takes the names apart.
    assert [int(name.split("_")[-1].split(".")[0]) for name in names] == list(range(10))
    assert {name.split("_")[0] for name in names} == {prompts[0]}
    assert os.listdir(out / "shape" / "samples")[0].startswith("a round tin_00000")
    assert "6 left out, with a prompt that cannot be a name there" in capsys.readouterr().err


# ---- the hub and what can go wrong


def pushed(folder: Path, output: Path, hub: Hub) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own: the client reads its endpoint as it is imported."""
    flags = ["--export", "imagefolder", "--output", str(output), "--push_to_hub", "me/mine"]
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_test"}
    del environment["HF_HUB_OFFLINE"]
    return subprocess.run(
        [sys.executable, "process_results.py", "--path", str(folder), *flags],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_an_export_is_pushed_with_the_environments_token(run: Run, tmp_path: Path) -> None:
    """By huggingface_hub's own client to a hub on this machine."""
    with hub_here() as hub:
        done = pushed(run.folder, tmp_path / "out", hub)
    assert done.returncode == 0, done.stderr
    assert hub.created == [
        {"name": "mine", "organization": "me", "type": "dataset", "visibility": "private"}
    ]
    written = {str(path.relative_to(tmp_path / "out")): path.read_bytes()
               for path in (tmp_path / "out").rglob("*") if path.is_file()}  # fmt: skip
    assert hub.files == written and "metadata.jsonl" in written and len(written) > 3
    assert hub.tokens == {"Bearer hf_test"}
    assert f"pushed to {hub.url}/datasets/me/mine" in done.stderr
    assert "hf_test" not in done.stdout + done.stderr


def test_what_the_hub_refuses_is_said_without_the_token(run: Run, tmp_path: Path) -> None:
    with hub_here() as hub:
        hub.refusal = "You have no right to write here"
        done = pushed(run.folder, tmp_path / "out", hub)
    assert done.returncode == 2
    assert "is written but cannot be pushed" in done.stderr and "403" in done.stderr
    assert "Traceback" not in done.stderr and "hf_test" not in done.stderr
    assert (tmp_path / "out" / "metadata.jsonl").exists()


def test_a_push_that_cannot_be_is_refused_before_anything_is_written(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    flags = ("--export", "imagefolder", "--output", tmp_path / "out", "--push_to_hub")
    for repository, said in (("me/mine", "HF_TOKEN"), ("mine", "owner/name")):
        assert exported(run.folder, *flags, repository) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert exported(run.folder, "--push_to_hub", "me/mine") == 2
    assert "goes with --export" in capsys.readouterr().err


def test_a_push_that_fails_leaves_the_export(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")  # and HF_HUB_OFFLINE is set in all tests
    flags = ("--export", "imagefolder", "--output", tmp_path / "out", "--push_to_hub", "me/mine")
    assert exported(run.folder, *flags) == 2
    assert "is written but cannot be pushed" in capsys.readouterr().err
    assert (tmp_path / "out" / "metadata.jsonl").exists()


def test_parquet_needs_pyarrow(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda n: None if n == "pyarrow" else found(n))
    assert exported(run.folder, "--export", "preferences") == 2
    assert "needs pyarrow: pip install pyarrow" in capsys.readouterr().err
    assert exported(run.folder, "--export", "imagefolder") == 0


def test_a_comparisons_folder_stands_for_its_runs(tmp_path: Path) -> None:
    for method, grey in (("random", 11), ("ses", 22)):
        for budget in (40, 80):
            made = Run(tmp_path / "c" / method / f"nfe{budget}_s0")
            made.add(0, 0.5, grey + budget)
            (made.folder / "config.json").write_text("{}")
    out = tmp_path / "out"
    assert exported(tmp_path / "c", "--export", "imagefolder", "--output", out) == 0
    assert loaded("imagefolder", data_dir=str(out))["seed"][:] == [11 + 80, 22 + 80]
    # One of its runs named beside it is still one run.
    again = tmp_path / "again"
    both = (tmp_path / "c", tmp_path / "c" / "random" / "nfe80_s0")
    assert exported(*both, "--export", "imagefolder", "--output", again) == 0
    assert len(loaded("imagefolder", data_dir=str(again))) == 2


def test_of_a_tree_as_tt_scale_flux_leaves_it_rounds_winners_are_exported(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", graded=True)
    out = tmp_path / "out"
    assert exported(tree, "--export", "imagefolder", "--output", out) == 0
    data = loaded("imagefolder", data_dir=str(out))
    assert len(data) == 2 * 3
    assert data["score"][:] == pytest.approx([6.1, 6.9, 6.4, 5.1, 5.9, 5.4])  # prompts by name
    assert data["chosen"][:] == [False, True, False] * 2
    pairs = tmp_path / "pairs"
    assert exported(tree, "--export", "preferences", "--margin", "0.7", "--output", pairs) == 0
    assert loaded(str(pairs))["score_0"][:] != loaded(str(pairs))["score_1"][:]
    broken = next(tree.glob("prompt@a_cat*_i@2_*.json"))
    broken.write_text("{")
    assert exported(tree, "--export", "imagefolder", "--output", tmp_path / "less") == 0
    assert len(loaded("imagefolder", data_dir=str(tmp_path / "less"))) == 5


def test_a_folder_without_images_and_a_video_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert exported(tmp_path / "empty", "--export", "imagefolder") == 2
    assert "There are no results in" in capsys.readouterr().err
    unscored = Run(tmp_path / "unscored")
    unscored.add(0, None, 1)
    assert exported(unscored.folder, "--export", "imagefolder") == 2
    assert "no scored images" in capsys.readouterr().err
    run = Run(tmp_path / "video")
    run.row(prompt="a", prompt_index=0, seed=1, score=1.0, status="ok", path="x.mp4")
    assert exported(run.folder, "--export", "imagefolder") == 2
    assert "not of videos" in capsys.readouterr().err


def test_no_deep_learning_library_is_imported(run: Run, tmp_path: Path) -> None:
    code = (
        "import sys, process_results\n"
        f"argv = ['--path', {str(run.folder)!r}, '--export', 'parquet', '--output', sys.argv[1]]\n"
        "assert process_results.main(argv) == 0\n"
        "sys.exit(bool({'torch', 'diffusers', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
