"""Every config fits the pipeline that it is for: its arguments, its sizes and its plan."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import diffusers
import pytest

from experiment.config import load_config
from main import main
from pipelines.loading import refuse_reserved
from utils import ROOT, counted


class Model(NamedTuple):
    """The pipeline class of a checkpoint, what it asks of sizes, and what a search costs."""

    pipeline: str
    multiple: int  # heights and widths are multiples of it; 0: it knows one size only
    nfe: str  # a prompt, as the plan says it
    frames: int = 0  # a video's frames are one more than a multiple of it


MODELS = {
    "dit_xl_2_256": Model("DiTPipeline", 0, "1500"),
    "flux.1_dev": Model("FluxPipeline", 16, "1500"),
    "flux.1_schnell": Model("FluxPipeline", 16, "120"),
    "flux.2_klein_4b": Model("Flux2KleinPipeline", 16, "120"),
    "ltx_video": Model("LTXPipeline", 32, "850 to 1000", frames=8),
    "pixart_sigma": Model("PixArtSigmaPipeline", 8, "600"),
    "qwen_image": Model("QwenImagePipeline", 16, "1500"),
    "sana": Model("SanaPipeline", 32, "600"),
    "sd1.5": Model("StableDiffusionPipeline", 8, "6300"),
    "sd3.5": Model("StableDiffusion3Pipeline", 16, "1200"),
    "sdxl": Model("StableDiffusionXLPipeline", 8, "6300"),
    "sdxl_turbo": Model("StableDiffusionXLPipeline", 8, "30"),
    "wan": Model("WanPipeline", 16, "1500", frames=4),
    "wan2.1_1.3b": Model("WanPipeline", 16, "1500", frames=4),
    "wan2.1_14b": Model("WanPipeline", 16, "1500", frames=4),
    "z_image_turbo": Model("ZImagePipeline", 16, "240"),
}
BUNDLED = "shapes_"  # configs of the bundled models, whose own files name their pipelines

each = pytest.mark.parametrize("name", MODELS)


def path(name: str) -> str:
    return str(ROOT / "configs" / f"{name}.json")


def call_args(name: str) -> dict[str, Any]:
    return load_config(path(name), {}).pipeline_call_args


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The named parameters of the pipeline's call: one that **kwargs would swallow is none."""
    pipeline = getattr(diffusers, MODELS[name].pipeline)
    found = inspect.signature(pipeline.__call__).parameters
    return {k: p for k, p in found.items() if p.kind is not p.VAR_KEYWORD and k != "self"}


def test_every_config_of_a_model_is_in_the_table() -> None:
    found = {p.stem for p in (ROOT / "configs").glob("*.json")} - {"schema"}
    assert {name for name in found if not name.startswith(BUNDLED)} == set(MODELS)


@each
def test_every_call_argument_is_one_of_the_pipelines(name: str) -> None:
    assert set(call_args(name)) <= set(parameters(name))
    refuse_reserved(call_args(name))


@each
def test_sizes_fit(name: str) -> None:
    args, model = call_args(name), MODELS[name]
    if not model.multiple:
        assert not {"height", "width"} & set(parameters(name))
        return
    assert args["height"] % model.multiple == args["width"] % model.multiple == 0
    assert ("num_frames" in args) == bool(model.frames) == ("num_frames" in parameters(name))
    if model.frames:
        assert args["num_frames"] % model.frames == 1
        assert load_config(path(name), {}).export_args is not None


@each
def test_guidance_takes_effect(name: str) -> None:
    args = call_args(name)
    if "true_cfg_scale" in args:  # guides with a negative prompt alone, even if it is blank
        assert args["true_cfg_scale"] > 1 and args["negative_prompt"]
        assert "guidance_scale" not in args
    elif "negative_prompt" in args:
        default = parameters(name)["guidance_scale"].default
        assert args.get("guidance_scale", default) > 1


@each
def test_the_plan_counts_the_steps(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    steps = counted(call_args(name)["num_inference_steps"], "step")
    assert main(["--dry_run", "--prompt=a cat", f"--pipeline_config_path={path(name)}"]) == 0
    assert f"{MODELS[name].nfe} per prompt ({steps} per image)" in capsys.readouterr().out


@each
def test_the_table_of_models_says_the_same(name: str) -> None:
    config, args = load_config(path(name), {}), call_args(name)
    lines = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split(" | ") for line in lines if f"`{name}.json`" in line.split(" | ")[0]]
    assert len(rows) == 1
    _, checkpoint, dtype, size, steps, guidance, *_ = rows[0]
    assert checkpoint == config.pretrained_model_name_or_path
    assert dtype == config.torch_dtype
    side = name.rpartition("_")[2]
    shape = f"{args.get('height', side)} x {args.get('width', side)}"
    assert size == (f"{shape} x {args['num_frames']}" if "num_frames" in args else shape)
    assert steps == str(args["num_inference_steps"])
    scale = args.get("true_cfg_scale", args.get("guidance_scale"))
    scale = parameters(name)["guidance_scale"].default if scale is None else scale
    assert float(guidance.split()[0]) == scale
