"""Every config in the repository, and every one of tt-scale-flux's, loads and can be planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from experiment.config import load_config, parse_config
from experiment.schema import schema
from main import main
from utils import ROOT, UserError

OURS = sorted(p for p in (ROOT / "configs").glob("*.json") if p.name != "schema.json")

GEMINI = {"name": "gemini", "max_new_tokens": 800, "choice_of_metric": "overall_score"}
QWEN = {**GEMINI, "name": "qwen"}
LAION = {"name": "laion_aesthetic", "choice_of_metric": "laion_aesthetic_score"}
RANDOM = {"search_method": "random", "search_rounds": 4}
ZERO_ORDER = {"search_method": "zero-order", "search_rounds": 4, "threshold": 0.95,
              "num_neighbors": 4}  # fmt: skip


def theirs(checkpoint: str, dtype: str, verifier: Any, search: Any, **call: Any) -> dict[str, Any]:
    return {
        "pretrained_model_name_or_path": checkpoint,
        "torch_dtype": dtype,
        "pipeline_call_args": call,
        "verifier_args": verifier,
        "search_args": search,
    }


TT_SCALE_FLUX = {  # name: (config, what the plan says)
    "flux": (
        theirs("black-forest-labs/FLUX.1-dev", "bf16", GEMINI, RANDOM, height=1024, width=1024,
               max_sequence_length=512, guidance_scale=3.5, num_inference_steps=50),
        "4 rounds, 30 images", "1500 per prompt",
    ),
    "pixart": (
        theirs("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", "fp16", GEMINI, RANDOM, height=1024,
               width=1024, max_sequence_length=300, guidance_scale=4.5, num_inference_steps=20),
        "4 rounds, 30 images", "600 per prompt",
    ),
    "sdxl": (
        theirs("stabilityai/stable-diffusion-xl-base-1.0", "fp16", QWEN,
               {**RANDOM, "search_rounds": 6}, height=1024, width=1024, guidance_scale=5.0,
               num_inference_steps=50),
        "6 rounds, 126 images", "6300 per prompt",
    ),
    "sd1.5": (
        theirs("stable-diffusion-v1-5/stable-diffusion-v1-5", "fp16", QWEN,
               {**RANDOM, "search_rounds": 6}, height=512, width=512, guidance_scale=7.5,
               num_inference_steps=50),
        "6 rounds, 126 images", "6300 per prompt",
    ),
    "ltx": (
        {**theirs("a-r-r-o-w/LTX-Video-0.9.1-diffusers", "bf16", LAION, ZERO_ORDER, height=480,
                  width=704, num_frames=161, negative_prompt="worst quality, blurry, jittery",
                  num_inference_steps=50), "export_args": {"fps": 24}},
        "4 rounds, 17 to 20 images", "850 to 1000 per prompt",
    ),
    "wan": (
        {**theirs("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "bf16", LAION, RANDOM, height=480, width=832,
                  num_frames=81, guidance_scale=5.0, num_inference_steps=50),
         "export_args": {"fps": 15}},
        "4 rounds, 30 images", "1500 per prompt",
    ),
    "zero-order": (
        theirs("black-forest-labs/FLUX.1-dev", "bf16", {**QWEN, "model_name": "Qwen/Qwen2.5-VL-3B",
               "prompt_path": "my_rubric.txt"}, ZERO_ORDER, num_inference_steps=50),
        "4 rounds, 17 to 20 images", "850 to 1000 per prompt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_our_configs_load_and_point_to_the_schema(path: Path) -> None:
    load_config(str(path), {})
    assert json.loads(path.read_text())["$schema"] == "./schema.json"


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_our_configs_can_be_planned(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry_run", "--prompt=a cat", f"--pipeline_config_path={path}"]) == 0
    assert "NFE" in capsys.readouterr().out


@pytest.mark.parametrize("name", TT_SCALE_FLUX)
def test_tt_scale_flux_configs_can_be_planned_unchanged(
    name: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content, *said = TT_SCALE_FLUX[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    assert main(["--dry_run", "--prompt=a cat", f"--pipeline_config_path={path}"]) == 0
    out = capsys.readouterr().out
    if content["verifier_args"] == GEMINI:
        assert "set the environment variable GEMINI_API_KEY" in out
    for words in (*said, "unknown until it is loaded", "steps per image"):
        assert words in out


def test_the_schema_is_current() -> None:
    written = json.loads((ROOT / "configs" / "schema.json").read_text())
    assert written == json.loads(json.dumps(schema())), "run: make schema"


def test_a_resolved_config_resolves_to_itself() -> None:
    for path in OURS:
        resolved = load_config(str(path), {"prompt": "x"}).resolved()
        assert parse_config(resolved).resolved() == resolved


def test_rounds_default_to_four_without_a_budget_and_to_none_with_one() -> None:
    base = {"pretrained_model_name_or_path": "a/b"}
    assert parse_config(base).rounds == 4
    assert parse_config({**base, "budget": {"nfe": 500}}).rounds is None
    both = {**base, "budget": {"nfe": 500}, "search_args": {"search_rounds": 2}}
    assert parse_config(both).rounds == 2


def test_a_users_own_search_is_named_by_its_dotted_path() -> None:
    base = {"pretrained_model_name_or_path": "a/b"}
    own = {"search_method": "search.methods.random:Random", "pool": "nested"}
    assert parse_config({**base, "search_args": own}).search_args.build().pool == "nested"
    with pytest.raises(UserError, match="no option 'pol'"):
        parse_config({**base, "search_args": {**own, "pol": 1}})
