"""Guidance changed on the way: where there is any it takes effect, elsewhere it is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from experiment.config import parse_config
from experiment.runner import plan
from main import main
from pipelines.denoiser import Denoiser
from tests.families import FAMILIES, PROMPT
from utils import UserError

SEEDS = (11, 12)
FLUX = "shapes/models/shapes-flux"
SD = "shapes/models/shapes-sd"


def midway(denoiser: Denoiser, guidance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents in the middle, and a step further with this factor."""
    drawn = denoiser.draw(PROMPT, SEEDS)
    half = denoiser.denoise(PROMPT, drawn.latents, SEEDS, drawn.step, drawn.step + 2)
    at = drawn.step + 2
    done = denoiser.denoise(PROMPT, half.latents, SEEDS, at, at + 1, guidance)
    return half.latents, done.latents


@pytest.mark.parametrize("name", FAMILIES)
def test_a_factor_takes_effect_midway_on_every_family(name: str) -> None:
    """All of them are guided as they are called."""
    denoiser = Denoiser(FAMILIES[name].build(), FAMILIES[name].call_args)
    start, usual = midway(denoiser, 1.0)
    again, louder = midway(denoiser, 3.0)
    assert torch.equal(start, again)
    assert louder.isfinite().all()
    assert not torch.allclose(usual, louder, atol=1e-6)


def unguided(name: str) -> Denoiser:
    """A family as it comes without guidance."""
    family = FAMILIES[name]
    pipe, args = family.build(), dict(family.call_args)
    if name == "flux":
        pipe.transformer.register_to_config(guidance_embeds=False)
    elif name == "klein":
        pipe.register_to_config(is_distilled=True)
    elif name == "qwen_image":
        del args["negative_prompt"]
    else:
        args["guidance_scale"] = 0.0
    return Denoiser(pipe, args)


@pytest.mark.parametrize("name", ["flux", "klein", "qwen_image", "sdxl", "z_image"])
def test_without_guidance_a_factor_is_refused(name: str) -> None:
    denoiser = unguided(name)
    drawn = denoiser.draw(PROMPT, SEEDS)
    with pytest.raises(UserError, match="no guidance scale here that could be changed"):
        denoiser.denoise(PROMPT, drawn.latents, SEEDS, 0, 1, 3.0)


def test_a_factor_on_what_is_refused_would_have_had_no_effect() -> None:
    """The reason to refuse it: the call arguments that the factor would change do nothing here."""
    for name, changed in (
        ("klein", {"guidance_scale": 12.0}),
        ("qwen_image", {"true_cfg_scale": 6.0}),
    ):
        denoiser = unguided(name)
        _, usual = midway(denoiser, 1.0)
        denoiser.call_args.update(changed)
        assert torch.equal(midway(denoiser, 1.0)[1], usual)


def config(checkpoint: str, method: str, **call: Any) -> dict[str, Any]:
    own = method if method.islower() else f"tests.searches:{method}"
    return {
        "pretrained_model_name_or_path": checkpoint,
        "torch_dtype": "fp32",
        "pipeline_call_args": {"num_inference_steps": 4, **call},
        "verifier_args": {"name": "tests.graders:Brightness"},
        "search_args": {"search_method": own, "search_rounds": 1},
        "prompt": "a red circle",
    }


def planned(
    tmp_path: Path, checkpoint: str, method: str, flags: tuple[str, ...] = (), **call: Any
) -> int:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config(checkpoint, method, **call)))
    return main([f"--pipeline_config_path={path}", f"--output_dir={tmp_path}/out", *flags])


def without_weights(folder: Path, checkpoint: str, **transformer: Any) -> str:
    """A checkpoint's configs alone."""
    shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    path = next(folder.glob("transformer/config.json"), None)
    if path is not None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **transformer}))
    return str(folder)


@pytest.mark.parametrize("flags", [("--dry_run",), ()])
def test_a_search_that_guides_is_refused_before_weights_load(
    flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = without_weights(tmp_path / "model", FLUX, guidance_embeds=False)
    assert planned(tmp_path, model, "Louder", flags, guidance_scale=3.5) == 2
    err = capsys.readouterr().err
    assert "'tests.searches:Louder' changes guidance, but FluxPipeline has no guidance" in err
    assert err.count("\n") == 1


def test_what_the_plan_refuses_depends_on_how_the_pipeline_is_called(tmp_path: Path) -> None:
    plain = without_weights(tmp_path / "plain", FLUX, guidance_embeds=False)
    embedded = without_weights(tmp_path / "embedded", FLUX, guidance_embeds=True)

    def refused(checkpoint: str, method: str, **call: Any) -> bool:
        try:
            plan(parse_config(config(checkpoint, method, **call)))
        except UserError as error:
            assert "no guidance scale as it is called here" in str(error)
            return True
        return False

    assert not refused(embedded, "Louder", guidance_scale=3.5)
    assert not refused(plain, "Louder", true_cfg_scale=3.0, negative_prompt="")
    assert refused(plain, "Louder", true_cfg_scale=3.0)
    assert not refused(plain, "Perhaps")  # a factor of 1 guides nothing
    assert not refused(SD, "Louder")  # by its default
    assert refused(plain, "monitor") and not refused(embedded, "monitor")
    assert refused(SD, "Louder", guidance_scale=0.0)


def test_a_guided_run_records_its_factor(tmp_path: Path) -> None:
    assert planned(tmp_path, SD, "Louder", (), guidance_scale=3.0) == 0
    (path,) = tmp_path.glob("out/*/*/*/*/candidates.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["guidance"] for row in rows if row["step"] == 4] == [3.0] * 2
