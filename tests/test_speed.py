"""Batch sizes that are measured, denoisers that are compiled: what is chosen, and that it works."""

from __future__ import annotations

import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    UNet2DConditionModel,
)

import pipelines.tuning
from experiment.config import parse_config
from experiment.runner import load, plan
from experiment.speed import compiles, measures_batches
from pipelines.compiling import PAYS_AFTER, compile_denoisers, pays, way_of
from pipelines.denoiser import Denoiser
from pipelines.tuning import fastest, measured, remembered_size
from tests.families import FAMILIES
from tests.test_run import config
from utils import UserError

# Batch sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 0.175, 2: 0.175}, 1),  # bound by its arithmetic
        ({1: 4.0, 2: 2.1, 4: 1.2, 8: 1.0, 16: 0.97}, 8),
        ({1: 4.0, 2: 2.1, 4: 1.2, 8: 1.06, 16: 0.99, 32: 1.3}, 16),
        ({1: 1.0}, 1),
    ],
)
def test_the_smallest_of_the_fast_sizes_is_chosen(seconds: dict[int, float], chosen: int) -> None:
    assert fastest(seconds) == chosen or (fastest(seconds) == 8 and 1.04 <= 1.05 * 0.99)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    family = FAMILIES["flux"]
    return Denoiser(family.build(), family.call_args)


class Clock:
    """A step of n images takes what `costs` says."""

    def __init__(self, costs: dict[int, float]) -> None:
        self._ends = itertools.chain.from_iterable(
            (0.0, cost, 0.0, cost) for cost in costs.values()
        )

    def __call__(self) -> float:
        return next(self._ends)


def test_measuring_ends_with_the_first_size_that_gains_nothing(denoiser: Denoiser) -> None:
    costs = {1: 1.0, 2: 1.2, 4: 2.38, 8: 1.0}
    found = measured(denoiser, "a red circle", tuple(costs), Clock(costs))
    assert found == {1: 1.0, 2: 0.6, 4: 0.595} and fastest(found) == 2


def test_measuring_ends_where_memory_does(
    denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run decodes one by one where there is no room; a size that needs that is too large."""
    decoded = denoiser._decoded

    def small(texts: Any, latents: torch.Tensor, *args: Any) -> Any:
        if len(latents) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return decoded(texts, latents, *args)

    monkeypatch.setattr(denoiser, "_decoded", small)
    costs = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}
    assert measured(denoiser, "a red circle", tuple(costs), Clock(costs)) == {1: 1.0, 2: 0.5}
    assert not denoiser.singly


def test_a_size_is_measured_once_for_a_model_and_a_machine(
    denoiser: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    answers = iter([{1: 3.0, 2: 1.0}, {1: 1.0}, {1: 3.0, 4: 1.0}])
    monkeypatch.setattr(pipelines.tuning, "measured", lambda *_: next(answers))
    sizes = [remembered_size(denoiser, "a", {"device": d}) for d in ("x", "x", "y", "x")]
    assert sizes == [2, 2, 1, 2]
    (kept,) = tmp_path.rglob("*.json")
    kept.write_text("{]")
    assert remembered_size(denoiser, "a", {"device": "x"}) == 4
    assert list(json.loads(kept.read_text()).values()) == [4]


def test_while_one_process_measures_the_others_wait_for_its_answer(
    denoiser: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    times: list[int] = []

    def measured(*_: Any) -> dict[int, float]:
        times.append(len(times))
        time.sleep(0.3)
        return {2 ** len(times): 1.0}

    monkeypatch.setattr(pipelines.tuning, "measured", measured)
    with ThreadPoolExecutor(4) as pool:  # the lock is the system's, so threads stand for processes
        asked = [pool.submit(remembered_size, denoiser, "a", {}) for _ in range(4)]
    assert [each.result() for each in asked] == [2] * 4 and times == [0]


def test_a_size_is_remembered_for_those_who_share_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In GB of weights, here of so few bytes that a small verifier counts."""
    keys: list[Any] = []

    def remembered(_: Any, __: str, machine: Any) -> int:
        keys.append(json.dumps(machine, sort_keys=True, default=str))
        return 2

    monkeypatch.setattr("experiment.fitting.GB", 10**6)
    monkeypatch.setattr("experiment.fitting.measures_batches", lambda *_: True)
    monkeypatch.setattr("experiment.fitting.remembered_size", remembered)
    clip = {"name": "clip", "model_name": "shapes/models/shapes-clip"}
    contrast, brightness = {"name": "contrast"}, {"name": "tests.graders:Brightness"}
    for verifier, judges in ((contrast, []), (brightness, []), (clip, []), (contrast, [clip])):
        asked = parse_config(config(verifier_args=verifier, judges=judges))
        load(asked, plan(asked))
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_only_images_on_a_gpu_are_measured() -> None:
    asked, images = parse_config(config(batch_size_for_img_gen=None)), FluxPipeline
    assert measures_batches(asked, "cuda:0", images)
    assert not measures_batches(asked, "cpu", images)
    assert not measures_batches(parse_config(config(batch_size_for_img_gen=2)), "cuda", images)


# Compiling ----------------------------------------------------------------------------------------


def test_transformers_of_repeated_blocks_go_by_blocks_and_unets_whole() -> None:
    assert way_of(FluxTransformer2DModel) == "regional"
    assert way_of(PixArtTransformer2DModel) == "whole"
    assert way_of(UNet2DConditionModel) == "whole"


def test_compiling_has_to_pay() -> None:
    flux, unet = FluxTransformer2DModel, UNet2DConditionModel
    assert pays([flux], PAYS_AFTER["regional"]) and not pays([flux], PAYS_AFTER["regional"] - 1)
    assert not pays([flux, unet], PAYS_AFTER["whole"] - 1) and not pays([flux], None)


def asking(**engine: Any) -> Any:
    return parse_config(config(engine_args=engine))


FLUX = config()["pretrained_model_name_or_path"]


@pytest.mark.parametrize(
    ("asked", "device", "offload", "passes", "expected"),
    [
        (asking(), "cuda:0", "none", 10**5, True),
        (asking(), "cuda:0", "none", 10, False),
        (asking(), "cuda:0", "none", None, False),
        (asking(), "cuda:0", "model", 10**5, False),
        (asking(), "cpu", "none", 10**5, False),
        (asking(quantization="fp8"), "cuda:0", "none", 10**5, False),
        (asking(compile="off"), "cuda:0", "none", 10**5, False),
        (asking(compile="on"), "cpu", "none", None, True),
    ],
)
def test_what_is_compiled(
    asked: Any, device: str, offload: str, passes: float | None, expected: bool
) -> None:
    assert compiles(asked, FLUX, device, offload, passes) is expected


def test_an_offloaded_denoiser_is_not_compiled() -> None:
    with pytest.raises(UserError, match=r"engine_args\.offload to 'none'"):
        compiles(asking(compile="on"), FLUX, "cuda:0", "model", None)


@pytest.mark.slow
def test_a_compiler_that_fails_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler is installed")

    monkeypatch.setattr("experiment.fitting.compiles", lambda *_: True)
    monkeypatch.setattr(
        "experiment.fitting.retraced", lambda parts: compile_denoisers(parts, backend=broken)
    )
    asked = parse_config(config())
    engine = load(asked, plan(asked))
    assert not engine.compiled and "no compiler is installed" in caplog.text
    assert engine.saved(asked)["engine_args"]["compile"] == "off"
    with pytest.raises(UserError, match=r"set engine_args\.compile to 'off'"):
        load(asking(compile="on"), plan(asked))
