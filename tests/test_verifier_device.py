"""A verifier on a device of its own judges while images are made, and nothing else changes.

"cpu:1" is a second name of the CPU to torch: a device that is not the pipeline's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from experiment.config import parse_config
from experiment.guests import Apart, Neighbor, placed, seated, verifier_device
from experiment.runner import Engine, load, plan
from pipelines.parts import denoisers
from tests.graders import Near
from tests.test_run import config, ran, results
from utils import UserError
from verifiers.base import Chosen, Item

OTHER = "cpu:1"
PATIENCE = 60.0  # seconds: only a failing test waits as long
NEAR = {"name": "tests.graders:Near"}


@pytest.fixture(autouse=True)
def _nobody_waits() -> Iterator[None]:
    Near.places.clear()
    yield
    Near.meeting = None


def near() -> Chosen:
    return Chosen(Near(), "near", "brightness")


def loaded(**engine: Any) -> Engine:
    asked = parse_config(config(verifier_args=NEAR, engine_args=engine))
    return load(asked, plan(asked))


@pytest.mark.parametrize(
    ("wanted", "device", "gpus", "expected"),
    [
        ("auto", "cuda", 2, "cuda:1"),
        ("auto", "cuda", 1, "cuda"),
        ("auto", "cuda:0", 2, "cuda:0"),  # one of several processes, or as the user shares them
        ("auto", "cpu", 0, "cpu"),
        ("cpu", "cuda", 2, "cpu"),
    ],
)
def test_where_verifiers_run(
    monkeypatch: pytest.MonkeyPatch, wanted: str, device: str, gpus: int, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert verifier_device(wanted, device) == expected


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"no device 'cuda:7' here: .*verifier_device"):
        verifier_device("cuda:7", "cpu")


def test_a_verifier_is_apart_on_another_device_only() -> None:
    assert placed(near(), "cpu", "cpu") == near() == placed(near(), "cpu:0", "cpu")
    there = placed(near(), OTHER, "cpu")
    assert isinstance(there, Apart) and there.remote
    there.load("cpu")
    assert Near.places == [OTHER]


def test_the_engine_seats_verifiers_where_the_config_says() -> None:
    beside, there = loaded(), loaded(verifier_device=OTHER)
    assert isinstance(seated(beside.verifier, beside.denoiser), Neighbor)
    assert seated(there.verifier, there.denoiser) is there.verifier
    assert Near.places == ["cpu", OTHER]


def test_a_search_by_gradients_keeps_its_verifier() -> None:
    with pytest.raises(UserError, match=r"leave out engine_args\.verifier_device"):
        asked = parse_config(
            config(
                verifier_args={"name": "clip", "model_name": "shapes/models/shapes-clip"},
                search_args={"search_method": "ascent"},
                budget={"nfe": 4},
                engine_args={"verifier_device": OTHER},
            )
        )
        load(asked, plan(asked))


def test_a_verifier_apart_is_asked_by_one_thread_at_a_time() -> None:
    there = placed(near(), OTHER, "cpu")
    lock = threading.Lock()
    together: list[bool] = []

    def meet() -> None:
        together.append(not lock.acquire(blocking=False))
        threading.Event().wait(0.01)
        if not together[-1]:
            lock.release()

    Near.meeting = meet
    item = Item(Image.new("RGB", (2, 2)), "a")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: there.score([item]), range(8)))
    assert together == [False] * 8


ROUNDS = {
    "search_args": {"search_method": "random", "search_rounds": 2},
    "batch_size_for_img_gen": 2,
}


def test_a_batch_is_judged_while_the_next_is_denoised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second round has two batches; the first of them is judged until the other is begun."""
    calls: list[int] = []
    forwards, begun = [0], threading.Event()

    def count(*_: Any) -> None:
        forwards[0] += 1
        if forwards[0] > 2 * 2 + 1:  # two batches of two steps, and one tried as the run begins
            begun.set()

    def wait() -> None:
        calls.append(len(calls))
        if len(calls) == 2:
            assert begun.wait(PATIENCE)

    Near.meeting = wait
    built = Engine.experiment

    def watched(engine: Engine, *args: Any, **kwargs: Any) -> Any:
        (part,) = denoisers(engine.denoiser.pipe)
        part.register_forward_pre_hook(count)
        return built(engine, *args, **kwargs)

    monkeypatch.setattr(Engine, "experiment", watched)
    ran(tmp_path, verifier_args=NEAR, engine_args={"verifier_device": OTHER}, **ROUNDS)
    assert len(calls) == 3


def test_nothing_but_time_depends_on_where_verifiers_run(tmp_path: Path) -> None:
    clip = {"name": "clip", "model_name": "shapes/models/shapes-clip"}
    judges = [{"name": "shapes_oracle", "choice_of_metric": "oracle_score"}]
    content = {"verifier_args": clip, "judges": judges, **ROUNDS}
    beside = ran(tmp_path / "beside", **content)
    there = ran(tmp_path / "there", engine_args={"verifier_device": OTHER}, **content)
    assert results(there) == results(beside)
