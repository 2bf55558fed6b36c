"""Checkpoints are checked before any weight loads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PNDMScheduler, SCMScheduler

from pipelines.loading import (
    RESERVED,
    check_call_args,
    choose_device,
    load_pipeline,
    load_scheduler,
    local_steps,
    pipeline_index,
    refuse_reserved,
)
from utils import UserError

FLUX = "shapes/models/shapes-flux"


@pytest.mark.parametrize("name", RESERVED)
def test_what_the_search_sets_is_reserved(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' cannot stand in pipeline_call_args"):
        refuse_reserved({name: 1})


def test_call_arguments_are_checked_against_the_pipelines_own() -> None:
    check_call_args(FLUX, {"height": 128, "true_cfg_scale": 2.0})
    with pytest.raises(UserError, match=r"FluxPipeline takes no call argument 'guidence_scale'.*"
                                        "did you mean 'guidance_scale'"):  # fmt: skip
        check_call_args(FLUX, {"guidence_scale": 2.0})


def index(folder: Path, content: str) -> str:
    (folder / "model_index.json").write_text(content)
    return str(folder)


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model_index\.json"):
        pipeline_index(str(tmp_path))
    with pytest.raises(UserError, match=r"not valid JSON .line 1, column 2."):
        pipeline_index(index(tmp_path, "{nonsense"))
    with pytest.raises(UserError, match=r"FluxxPipeline, which diffusers does not have.*Flux"):
        check_call_args(index(tmp_path, json.dumps({"_class_name": "FluxxPipeline"})), {})


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("[1]", "names no pipeline"),
        ("{}", "names no pipeline"),
        ('{"_class_name": ["my_file", "MyPipeline"]}', "which diffusers does not have"),
        ('{"_class_name": "UNet2DModel"}', "which is no pipeline"),
        ('{"_class_name": "AudioDiffusionPipeline"}', "install librosa first"),
    ],
)
def test_an_index_that_names_no_pipeline_of_diffusers_is_refused(
    content: str, match: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=match):
        check_call_args(index(tmp_path, content), {})


def test_an_index_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match=r"no UTF-8 text"):
        pipeline_index(str(tmp_path))


@pytest.mark.parametrize(
    ("scheduler", "match"),
    [
        (None, "has no scheduler"),
        ([None, None], "has no scheduler"),
        (["diffusers", "DDIMMScheduler"], r"does not have \(the nearest is DDIMScheduler\)"),
        (["diffusers", "DDIMScheduler"], r"cannot be loaded: .* no file named scheduler_config"),
    ],
)
def test_a_checkpoint_without_its_scheduler_is_refused(
    scheduler: Any, match: str, tmp_path: Path
) -> None:
    content = {"_class_name": "FluxPipeline", "scheduler": scheduler}
    with pytest.raises(UserError, match=match):
        load_scheduler(index(tmp_path, json.dumps(content)))


def test_a_checkpoint_without_its_weights_is_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(FLUX, folder)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"cannot be loaded: .* no file named") as e:
        load_pipeline(str(folder), "fp32", "cpu")
    assert "\n" not in str(e.value)


def test_a_hub_id_that_cannot_be_reached_is_one_sentence() -> None:
    with pytest.raises(UserError, match="neither a folder here nor to be had from the hub") as e:
        pipeline_index("nobody/nothing")
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="'nobody/nothing' cannot be loaded") as e:
        load_pipeline("nobody/nothing", "fp32", "cpu")
    assert "\n" not in str(e.value)


def test_local_files_tell_how_many_steps_there_are(tmp_path: Path) -> None:
    assert local_steps(FLUX, 20) == 20
    assert local_steps("shapes/models/shapes-sd", 20) == 20
    PNDMScheduler(skip_prk_steps=True).save_pretrained(tmp_path / "scheduler")
    index(tmp_path, json.dumps({"_class_name": "X", "scheduler": ["diffusers", "PNDMScheduler"]}))
    assert local_steps(str(tmp_path), 20) == 21
    assert local_steps("owner/name", 20) is None


def test_steps_that_only_the_pipeline_can_set_are_not_guessed(tmp_path: Path) -> None:
    """SCM's set_timesteps takes two steps, or arguments that its pipeline works out."""
    SCMScheduler().save_pretrained(tmp_path / "scheduler")
    names = {"_class_name": "SanaSprintPipeline", "scheduler": ["diffusers", "SCMScheduler"]}
    assert local_steps(index(tmp_path, json.dumps(names)), 4) is None


def test_the_scheduler_loads_alone() -> None:
    assert type(load_scheduler(FLUX)).__name__ == "FlowMatchEulerDiscreteScheduler"


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_weights_load_in_the_dtype_asked_for(name: str, dtype: torch.dtype) -> None:
    pipe = load_pipeline(FLUX, name, "cpu")
    assert pipe.transformer.dtype == pipe.text_encoder_2.dtype == pipe.vae.dtype == dtype


def test_devices() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cpu", "mps")
    for missing in ("cuda:1", "gpu", "hpu"):
        with pytest.raises(UserError, match=f"no device '{missing}' here"):
            choose_device(missing)


def test_a_config_can_replace_the_scheduler() -> None:
    sd = "shapes/models/shapes-sd"
    found = load_scheduler(sd, {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True})
    assert type(found).__name__ == "EulerDiscreteScheduler"
    assert found.config.beta_schedule == "scaled_linear"  # the checkpoint's own
    assert found.config.use_karras_sigmas
    pipe = load_pipeline(sd, "fp32", "cpu", scheduler={"_class_name": "PNDMScheduler"})
    assert type(pipe.scheduler).__name__ == "PNDMScheduler"
    # the warm-up of its Runge-Kutta steps takes 9 calls more (Liu et al. 2022)
    assert local_steps(sd, 20, {"_class_name": "PNDMScheduler"}) == 29
    quick = {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
    assert local_steps(sd, 20, quick) == 21


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"_class_name": "DDIMSheduler"}, "DDIMSheduler, which diffusers does not have"),
        ({"_class_name": "DDIMScheduler", "beta_strat": 0}, "did you mean 'beta_start'"),
        ({"beta_start": 0.1}, "None, which diffusers does not have"),
    ],
)
def test_a_wrong_scheduler_is_refused(wanted: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_scheduler("shapes/models/shapes-sd", wanted)


def test_a_dry_run_reads_what_the_hubs_cache_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache as huggingface_hub keeps it: a reference to a snapshot, whose files are links."""
    from huggingface_hub import constants

    from experiment.config import parse_config
    from experiment.runner import plan

    revision = "0" * 40
    stored = tmp_path / "models--me--mine"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text(revision)
    (stored / "snapshots").mkdir()
    (stored / "snapshots" / revision).symlink_to(Path("shapes/models/shapes-flux").absolute())
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    content = {
        "pretrained_model_name_or_path": "me/mine",
        "pipeline_call_args": {"num_inference_steps": 4},
        "verifier_args": {"name": "contrast"},
        "prompt": "a cat",
    }
    said = str(plan(parse_config(content)))
    assert "me/mine (bf16): FluxPipeline, FlowMatchEulerDiscreteScheduler" in said
    assert "GB of weights on disk" in said
    content["pretrained_model_name_or_path"] = "me/other"
    assert "unknown until the checkpoint's files are here" in str(plan(parse_config(content)))
