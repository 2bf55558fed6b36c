"""Every verifier in a whole run on the bundled model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.verifiers import small_options
from main import main
from pipelines.memory import Placement
from pipelines.placement import Residence
from tests.fake_api import MODEL, FakeApi, Reply
from tests.test_run import PROMPT, config, ran, rounds_of, rows_of
from tests.tiny_vlm import save_qwen2_5

KEY = "canary-9c2e57aa01"
CLIP = {"model_name": "shapes/models/shapes-clip"}
SHORT = {"search_method": "random", "search_rounds": 1}
LOCAL = ["clip", "pickscore", "hpsv2", "image_reward", "laion_aesthetic", "contrast",
         "shapes_oracle"]  # fmt: skip


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    vlm = {"model_name": str(save_qwen2_5(folder / "vlm")), "dtype": "fp32"}
    return {
        **small_options(folder),
        "vqa": vlm,
        "qwen": {**vlm, "mode": "scores_only"},
        "self_similarity": CLIP,
        "ensemble": {"verifiers": [{"name": "clip", **CLIP}, {"name": "contrast"}]},
        "classifier": {"model_name": _classifier(folder / "vit")},
        "inception_score": {"model_name": _classifier(folder / "vit2")},
        "fid": {**CLIP, "statistics": _statistics(folder)},
    }


def _classifier(folder: Path) -> str:
    """A random ViT that tells a red circle from other things, by its own lights."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    names = {0: PROMPT, 1: "something else"}
    vit = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=16, id2label=names, label2id={v: k for k, v in names.items()},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTForImageClassification(vit).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def _statistics(folder: Path) -> str:
    import numpy as np

    path = folder / "statistics.npz"
    np.savez(path, mu=np.zeros(128), sigma=np.eye(128))
    return str(path)


def judged_well(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a run all of whose candidates have a score of their own."""
    rows = rows_of(folder)
    assert [row["status"] for row in rows] == ["ok"] * len(rows)
    assert all(math.isfinite(row["score"]) and row["scores"][name] for row in rows)
    (record,) = rounds_of(folder)
    best = record["best_score"]
    assert (best["score"] if isinstance(best, dict) else best) == max(r["score"] for r in rows)
    return rows


@pytest.mark.parametrize(
    "name",
    [*LOCAL, "vqa", "qwen", "self_similarity", "ensemble", "classifier", "inception_score", "fid"],
)
def test_a_run_is_judged_by(name: str, tmp_path: Path, options: dict[str, dict[str, Any]]) -> None:
    folder = ran(tmp_path, verifier_args={"name": name, **options[name]}, search_args=SHORT)
    judged_well(folder, name)


def test_an_ensembles_members_stand_in_the_records(
    tmp_path: Path, options: dict[str, dict[str, Any]]
) -> None:
    folder = ran(
        tmp_path, verifier_args={"name": "ensemble", **options["ensemble"]}, search_args=SHORT
    )
    for row in rows_of(folder):
        assert set(row["scores"]) == {"ensemble", "clip", "contrast"}
        assert math.isfinite(row["scores"]["clip"]["clip_score"])
        assert math.isfinite(row["scores"]["contrast"]["contrast"])


@pytest.fixture(params=["gemini", "openai"])
def grader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A grader's name and the server it asks; its key is a canary."""
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def script(call: Any) -> Reply:
        assert any(KEY in value for value in call.headers.values())  # the key did arrive
        if call.attempt == 1 and call.image % 2:
            return Reply(status=500, error={"message": f"trouble with {KEY}"})
        return Reply()

    with FakeApi(script) as api:
        yield request.param, api


def test_graders_judge_a_run_and_their_keys_are_nowhere(
    grader: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, api = grader
    folder = ran(
        tmp_path,
        verifier_args={"name": name, "base_url": api.url, "max_new_tokens": 800},
        judges=[{"name": "shapes_oracle"}],
        search_args=SHORT,
    )
    rows = judged_well(folder, name)
    (record,) = rounds_of(folder)
    assert record["best_score"]["explanation"] == "why overall_score"
    assert record["choice_of_metric"] == "overall_score"
    assert all(row["details"]["model"] == MODEL for row in rows)
    assert all(row["details"]["output_tokens"] for row in rows)
    rubrics = json.loads((folder / "manifest.json").read_text())["rubrics"]
    assert len(rubrics["verifier"]) >= 16 and rubrics["shapes_oracle"] is None
    out, err = capfd.readouterr()
    assert KEY not in out + err
    assert not any(KEY.encode() in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_a_wrong_key_is_one_sentence_without_the_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeApi(lambda _: Reply(status=401, error={"message": f"bad key {KEY}"})) as api:
        content = config(verifier_args={"name": "openai", "base_url": api.url}, search_args=SHORT)
        path = tmp_path / "config.json"
        path.write_text(json.dumps(content))
        argv = [f"--pipeline_config_path={path}", f"--output_dir={tmp_path}/out"]
        assert main(argv) == 2
    err = capsys.readouterr().err
    assert "OPENAI_API_KEY" in err and err.count("\n") == 1
    assert KEY not in err


def test_low_memory_takes_verifier_and_pipeline_in_turn(
    tmp_path: Path, options: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    monkeypatch.setattr("verifiers.vlm.VlmVerifier.offload", lambda self: moved.append("off"))
    monkeypatch.setattr(
        "experiment.runner.settle",
        lambda pipe, device, *_, **__: Residence(pipe, device, Placement(), alone=True),
    )
    ran(
        tmp_path,
        verifier_args={"name": "vqa", **options["vqa"]},
        search_args=SHORT,
        use_low_gpu_vram=True,
    )
    assert moved == ["off", "off"]  # after the round, and after it was told which image was chosen
