"""No memory to decode a whole batch: one by one from there on, the batches as large as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.interrupted import Killed, content, killed_at
from tests.still_worlds import StillWorld


class Cramped:
    """A pipeline's way to pixels, with room for one picture; torch's own error beyond."""

    def __init__(self, processor: Any) -> None:
        self.sizes: list[int] = []
        self._postprocess = processor.postprocess

    def __call__(self, pixels: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.sizes.append(len(pixels))
        if len(pixels) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self._postprocess(pixels, *args, **kwargs)


def cramped(world: StillWorld, monkeypatch: pytest.MonkeyPatch) -> Cramped:
    processor = world.engine.denoiser.pipe.image_processor
    monkeypatch.undo()
    found = Cramped(processor)
    monkeypatch.setattr(processor, "postprocess", found)
    return found


def batches(folder: dict[str, Any]) -> list[int]:
    return [row["batch_size"] for row in folder["candidates.jsonl"]]


@pytest.mark.slow
def test_pictures_are_decoded_one_by_one_for_the_rest_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = StillWorld.made(tmp_path, "random")
    roomy = world.whole
    found = cramped(world, monkeypatch)
    ended = world.begun("cramped")
    world.go_on(ended)
    expected = content(ended)
    assert batches(expected) == batches(roomy.content) and 2 in batches(expected)
    assert found.sizes == [2] + [1] * 6  # tried once, over both prompts
    assert expected == roomy.content  # this pipeline's bits do not depend on it
    for number in range(4, 2 * roomy.writes, 7):
        found = cramped(world, monkeypatch)
        folder = world.begun(f"killed{number}")
        with pytest.raises(Killed), killed_at(number):
            world.go_on(folder)
        known = '"singly": true' in _state(folder)
        found = cramped(world, monkeypatch)
        world.go_on(folder)
        assert content(folder) == expected
        if known:  # a resumed run decodes as the run had come to do
            assert set(found.sizes) <= {1}, number


def _state(folder: Path) -> str:
    return "".join(path.read_text() for path in (folder / "state").glob("*.jsonl"))
