"""Pictures are converted out of the pipeline's turn, into the very same bytes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from experiment.config import parse_config
from experiment.runner import load, plan
from experiment.store import RunStore
from pipelines.denoiser import Denoiser
from pipelines.developing import Undeveloped
from tests.families import FAMILIES, PROMPT
from tests.test_run import config

SEEDS = (11, 12)
OTHERWISE = {"dit"}  # post-processes without a processor


@pytest.mark.parametrize("name", FAMILIES)
def test_a_later_picture_has_the_bytes_of_the_first(name: str) -> None:
    denoiser = Denoiser(FAMILIES[name].build(), FAMILIES[name].call_args)
    drawn = denoiser.draw(PROMPT, SEEDS)
    steps = denoiser.steps(PROMPT)
    processors = [v for k, v in vars(denoiser.pipe).items() if k.endswith("_processor")]
    before = [dict(vars(processor)) for processor in processors]
    first, second, alone = (
        denoiser.decode(PROMPT, drawn.latents[:n], SEEDS[:n], steps) for n in (2, 2, 1)
    )
    assert not any(isinstance(each, Undeveloped) for each in first.pictures)
    for put_off in (second, alone):
        later = [isinstance(each, Undeveloped) for each in put_off.pictures]
        assert all(later) if name not in OTHERWISE else not any(later)
    for one, other in zip(first.media, second.media, strict=True):
        assert type(one) is type(other) and np.array_equal(np.asarray(one), np.asarray(other))
    assert [dict(vars(processor)) for processor in processors] == before


def test_a_run_converts_while_others_may_denoise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = parse_config(config(batch_size_for_img_gen=2))
    planned = plan(asked)
    engine, convert, held = load(asked, planned), VaeImageProcessor.numpy_to_pil, []
    turn: Any = engine.denoiser.turn

    def converted(pixels: np.ndarray) -> list[Any]:
        held.append(turn._is_owned())
        return convert(pixels)

    monkeypatch.setattr(VaeImageProcessor, "numpy_to_pil", staticmethod(converted))
    engine.experiment(asked, planned, RunStore.create(str(tmp_path), asked)).run()
    assert held[0] and len(held) > 4 and not any(held[1:])  # the first is looked at


class Overlaid(VaeImageProcessor):
    """A user's own, which draws on each picture."""

    def postprocess(self, *args: Any, **kwargs: Any) -> Any:
        images: Any = super().postprocess(*args, **kwargs)
        return [image.rotate(90) for image in images]


@pytest.mark.parametrize("how", ["processor", "pipeline"])
def test_what_is_done_otherwise_is_left_alone(how: str) -> None:
    family = FAMILIES["flux"]
    pipe: Any = family.build()
    if how == "processor":
        pipe.image_processor = Overlaid()
    else:

        class Turning(type(pipe)):  # type: ignore[misc]
            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                output = super().__call__(*args, **kwargs)
                output.images = [image.rotate(90) for image in output.images]
                return output

        Turning.__call__.__signature__ = inspect.signature(type(pipe).__call__)
        pipe.__class__ = Turning
    denoiser = Denoiser(pipe, family.call_args)
    drawn, steps = denoiser.draw(PROMPT, SEEDS), denoiser.steps(PROMPT)
    first, second = (denoiser.decode(PROMPT, drawn.latents, SEEDS, steps) for _ in range(2))
    assert isinstance(second.pictures[0], Image.Image)
    assert np.array_equal(np.asarray(first.media[0]), np.asarray(second.media[0]))
