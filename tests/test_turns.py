"""Verifiers beside a pipeline: pictures are prepared while it works, models wait for their turn."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import nn

from experiment.guests import Neighbor
from tests.graders import Brightness
from tests.tiny_vlm import items, loaded, save_qwen2_5
from verifiers import make_verifier
from verifiers.base import Chosen, Item, Score
from verifiers.moving import models_within
from verifiers.turns import on_device, taking
from verifiers.vqa import Vqa

CLIP = {"model_name": "shapes/models/shapes-clip"}
PATIENCE = 60.0  # seconds: only a failing test waits as long


class Turn:
    """A turn that tells whether it is held."""

    def __init__(self) -> None:
        self.held, self.taken = False, 0

    def __enter__(self) -> None:
        assert not self.held
        self.held = True
        self.taken += 1

    def __exit__(self, *_: object) -> None:
        self.held = False


def watched(verifier: Any, turn: Turn) -> list[bool]:
    """Whether the turn was held at each of the models' forward passes."""
    seen: list[bool] = []
    models: list[nn.Module] = list(models_within(verifier))
    assert models
    for model in models:
        for module in model.modules():
            module.register_forward_pre_hook(lambda *_: seen.append(turn.held))
    return seen


def clip() -> tuple[Any, list[Item]]:
    chosen = make_verifier("clip", None, CLIP)
    chosen.load("cpu")
    return chosen.verifier, [Item(Image.new("RGB", (128, 128), c), c) for c in ("red", "blue")]


def vqa(folder: Path) -> tuple[Any, list[Item]]:
    return loaded(Vqa, str(save_qwen2_5(folder))), items()


@pytest.mark.parametrize("which", ["clip", "vqa"])
def test_a_model_works_in_its_turn_and_pictures_are_prepared_out_of_it(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier, shown = clip() if which == "clip" else vqa(tmp_path)
    plain = [score.aspects for score in verifier.score(shown)]
    turn, preparing = Turn(), []
    convert = Image.Image.convert

    def converted(image: Image.Image, *args: Any, **kwargs: Any) -> Image.Image:
        preparing.append(turn.held)
        return convert(image, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "convert", converted)
    seen = watched(verifier, turn)
    metric = verifier.metrics[0]
    scores = Neighbor(verifier, which, metric, turn).score(shown)
    assert verifier.takes_turns and turn.taken >= 1
    assert seen and all(seen) and preparing and not any(preparing)
    assert [score.aspects for score in scores] == plain


def test_a_verifier_that_takes_no_turns_has_the_device_throughout() -> None:
    turn = Turn()

    class Plain(Brightness):
        def score(self, items: Any) -> list[Score]:
            assert turn.held
            return super().score(items)

    assert not Plain().takes_turns
    item = Item(Image.new("RGB", (2, 2)), "a")
    assert Neighbor(Plain(), "plain", "brightness", turn).score([item])[0].status == "ok"


class Holding(Brightness):
    """Says whether the turn was held while it judged."""

    turn: ClassVar[Turn]
    held: ClassVar[list[tuple[str, bool]]] = []

    def score(self, items: Any) -> list[Score]:
        self.held.append((type(self).__name__, self.turn.held))
        return super().score(items)


class Elsewhere(Holding):
    @property
    def remote(self) -> bool:
        return True


def test_an_ensemble_needs_the_device_for_those_members_alone_that_do() -> None:
    """Not while an API thinks, whoever else is asked."""
    members = [{"name": f"tests.test_turns:{name}"} for name in ("Holding", "Elsewhere")]
    ensemble = make_verifier("ensemble", None, {"verifiers": [*members, {"name": "contrast"}]})
    assert not ensemble.remote
    asked: Any = importlib.import_module("tests.test_turns").Holding  # as it was found by name
    turn = asked.turn = Turn()
    item = Item(Image.new("RGB", (2, 2)), "a")
    beside = Neighbor(ensemble.verifier, "ensemble", "ensemble_score", turn)
    assert beside.score([item])[0].status == "ok"
    assert asked.held == [("Holding", True), ("Elsewhere", False)]


class Slow(Brightness):
    """Prepares until the pipeline has worked; then judges."""

    worked: ClassVar[threading.Event] = threading.Event()
    inside: ClassVar[list[int]] = []

    @property
    def takes_turns(self) -> bool:
        return True

    def score(self, items: Any) -> list[Score]:
        self.inside.append(1)
        assert len(self.inside) == 1, "asked by two threads at once"
        assert self.worked.wait(PATIENCE)
        with on_device():
            self.inside.pop()
            return super().score(items)


def test_the_pipeline_works_while_two_threads_ask() -> None:
    turn = threading.RLock()
    beside = Neighbor(Slow(), "slow", "brightness", turn)
    item = Item(Image.new("RGB", (2, 2)), "a")
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(beside.score, [item]) for _ in range(2)]
        with turn:  # which nobody holds meanwhile
            Slow.worked.set()
        assert all(future.result(PATIENCE)[0].status == "ok" for future in asked)


def test_the_turn_is_the_threads_own_and_ends_with_its_block() -> None:
    turn = Turn()

    @contextmanager
    def free() -> Iterator[None]:
        with on_device():
            yield

    with taking(turn):
        with on_device():
            assert turn.held
        with ThreadPoolExecutor(1) as pool:
            pool.submit(lambda: free().__enter__()).result()
        assert turn.taken == 1
    with on_device():
        assert not turn.held


def test_chosen_scores_alone_wait_for_nobody() -> None:
    verifier, shown = clip()
    with torch.no_grad():
        assert Chosen(verifier, "clip", "clip_score").score(shown)[0].status == "ok"
