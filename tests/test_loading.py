"""Checkpoints are checked before any weight loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import PNDMScheduler

from pipelines.loading import (
    check_call_args,
    choose_device,
    load_pipeline,
    load_scheduler,
    local_steps,
    pipeline_index,
    refuse_reserved,
    refuse_videos,
)
from utils import UserError

FLUX = "shapes/models/shapes-flux"


@pytest.mark.parametrize("name", ["prompt", "latents", "generator", "num_images_per_prompt"])
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


def test_videos_are_refused_before_they_are_paid_for(tmp_path: Path) -> None:
    refuse_videos(FLUX)
    with pytest.raises(UserError, match="LTXPipeline makes videos"):
        refuse_videos(index(tmp_path, json.dumps({"_class_name": "LTXPipeline"})))


def test_a_hub_id_that_cannot_be_reached_is_one_sentence() -> None:
    with pytest.raises(UserError, match="neither a folder here nor to be had from the hub") as e:
        pipeline_index("nobody/nothing")
    assert "\n" not in str(e.value)


def test_local_files_tell_how_many_steps_there_are(tmp_path: Path) -> None:
    assert local_steps(FLUX, 20) == 20
    assert local_steps("shapes/models/shapes-sd", 20) == 20
    PNDMScheduler(skip_prk_steps=True).save_pretrained(tmp_path / "scheduler")
    index(tmp_path, json.dumps({"_class_name": "X", "scheduler": ["diffusers", "PNDMScheduler"]}))
    assert local_steps(str(tmp_path), 20) == 21
    assert local_steps("owner/name", 20) is None


def test_the_scheduler_loads_alone() -> None:
    assert type(load_scheduler(FLUX)).__name__ == "FlowMatchEulerDiscreteScheduler"


@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_weights_load_in_the_dtype_asked_for(name: str, dtype: torch.dtype) -> None:
    pipe = load_pipeline(FLUX, name, "cpu")
    assert pipe.transformer.dtype == pipe.text_encoder_2.dtype == pipe.vae.dtype == dtype


def test_devices() -> None:
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") in ("cpu", "mps")
    with pytest.raises(UserError, match="no device 'cuda:1' here"):
        choose_device("cuda:1")
