"""A pipeline is placed before the batch size is measured, and placed again once it is known."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipelines.tuning
from experiment.choices import refitted
from experiment.config import parse_config
from experiment.runner import load, plan, run
from pipelines.denoiser import Denoiser
from pipelines.loading import load_pipeline
from pipelines.memory import HEADROOM, Needs, Part, Placement, needs_of
from pipelines.placement import Residence, Room
from pipelines.tuning import measured, remembered_size
from tests.families import FAMILIES
from tests.interrupted import Killed, killed_at
from tests.test_run import config, results

FLUX = "shapes/models/shapes-flux"
PARTS = (Part("transformer", "denoiser", 100, 10),)
PROMPT = "a red circle"


@dataclass(frozen=True)
class Told(Room):
    """By batch size, the placement that it is said to have room for."""

    placements: Any = None

    def placement(self, batch: int) -> Placement:
        found: Placement = self.placements[batch]
        return found


def told(placements: dict[int, Placement]) -> tuple[Denoiser, Residence]:
    """A pipeline that is placed for the first of these sizes."""
    first = next(iter(placements))
    room = Told(Needs(PARTS, first, 10, 10, None, True, True), "auto", "auto", 0, placements)
    family = FAMILIES["flux"]
    pipe = family.build()
    residence = Residence(pipe, "cpu", placements[first], room=room)
    return Denoiser(pipe, family.call_args, residence), residence


def test_wherever_weights_move_from_images_stay() -> None:
    denoiser, residence = told(
        {
            8: Placement("group", "slicing"),
            4: Placement("model"),
            2: Placement(text_leaves=True, vae="slicing"),
            1: Placement(),
            3: Placement("group"),
            5: Placement(text_leaves=True),
            6: Placement("model", "slicing"),
            7: Placement(),
        }
    )

    def picture() -> np.ndarray:
        drawn = denoiser.draw(PROMPT, [0])
        steps = denoiser.steps(PROMPT)
        done = denoiser.denoise(PROMPT, drawn.latents, [0], 0, steps)
        return np.asarray(denoiser.decode(PROMPT, done.clean, [0], steps).media[0])

    first = picture()
    for size, placement in residence._room.placements.items():  # type: ignore[union-attr]
        residence.suit(size, "auto")
        assert residence.placement == placement
        assert denoiser.pipe.vae.use_slicing == (placement.vae == "slicing")
        assert residence.encoders_leave == (placement.text_leaves or placement.offload == "model")
        assert np.array_equal(picture(), first), placement


def test_no_size_is_measured_for_which_weights_would_have_to_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is one taken that was measured when there was more room."""
    here, slices, away = Placement(), Placement(vae="slicing"), Placement("model")
    denoiser, _ = told({8: here, 16: slices, 32: away})
    seconds = {1: 8.0, 2: 8.0, 4: 8.0, 8: 8.0, 16: 8.0, 32: 8.0}
    steps = iter(seconds.values())
    monkeypatch.setattr(pipelines.tuning, "_step", lambda *_: next(steps))
    assert list(measured(denoiser, PROMPT)) == [1, 2, 4, 8, 16]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(pipelines.tuning, "measured", lambda *_: {32: 1.0})
    assert remembered_size(denoiser, PROMPT, {}) == 16


def test_a_run_is_placed_for_the_size_that_it_chose_and_goes_on_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU with room for one picture whole and for 8 only with slices."""
    call = {"num_inference_steps": 2, "height": 64, "width": 64, "max_sequence_length": 16}
    content = config(
        search_args={"search_method": "random", "search_rounds": 1}, pipeline_call_args=call
    )
    asked = parse_config(content)
    needs = needs_of(load_pipeline(FLUX, "fp32", None), asked.pipeline_call_args, 1)
    room = int(needs.peak(Placement()) * HEADROOM) + 1
    begun: list[Placement] = []

    def chosen(denoiser: Denoiser, *_: Any) -> dict[int, float]:
        assert denoiser.residence is not None
        begun.append(denoiser.residence.placement)
        return {1: 1.0}

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("pipelines.placement.free_memory", lambda _: room)
    monkeypatch.setattr(
        "experiment.fitting.measures_batches", lambda asked, *_: asked.batch_size == "auto"
    )
    monkeypatch.setattr(pipelines.tuning, "measured", chosen)
    engine = load(asked, plan(asked))
    assert engine.denoiser.residence is not None
    assert begun[0] != engine.denoiser.residence.placement == Placement()
    assert engine.manifest["placement"] == engine.denoiser.residence.described()
    larger = asked.engine_args.model_copy(update={"batch_size": 8, "vae": "plain"})
    others = asked.model_copy(update={"engine_args": larger})  # chosen by whoever came first
    taken = refitted(engine, others, plan(asked))
    assert taken.batch_size == 8 and engine.denoiser.residence.placement.vae == "plain"
    assert taken.manifest["placement"] == engine.denoiser.residence.described()

    with pytest.raises(Killed), killed_at(5):
        run(asked, str(tmp_path), run_name="killed")
    whole = run(asked, str(tmp_path), run_name="whole").folder
    resumed = run(asked, str(tmp_path), run_name="killed").folder
    named = parse_config({**content, "engine_args": {"batch_size": 1}})
    expected = run(named, str(tmp_path), run_name="named").folder
    assert len(begun) == 1  # remembered after that
    for folder in (whole, resumed, expected):
        saved = json.loads((folder / "config.json").read_text())["engine_args"]
        assert (saved["batch_size"], saved["vae"]) == (1, "plain")
        assert results(folder) == results(expected)
