"""Text encoders: run once for a call, in few visits to the device, and change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines.denoiser import Denoiser
from pipelines.encoding import Encodings
from pipelines.memory import Placement
from pipelines.placement import Residence
from tests.families import FAMILIES
from tests.test_run import ran, results

PROMPT = "a red circle"


def test_encodings_are_remembered_by_content_and_forgotten_by_age() -> None:
    calls: list[Any] = []
    encode = Encodings(lambda *args, **kwargs: calls.append(args) or len(calls))
    for _ in range(2):  # equal, not identical: an edited picture is prepared anew in each call
        assert encode([PROMPT], torch.ones(2, dtype=torch.bfloat16)) == 1
        assert encode([PROMPT], torch.zeros(2, dtype=torch.bfloat16)) == 2
        assert encode(PROMPT, image=Image.new("RGB", (2, 2), "red")) == 3
        assert encode(PROMPT, image=Image.new("RGB", (2, 2), "blue")) == 4
    texts = ["a"]
    assert encode(texts) == 5
    texts[0] = "b"  # Z-Image rewrites the list it is handed
    assert encode(texts) == 6 and encode(["a"]) == 5
    for i in range(16):
        encode([str(i)])
    before = len(calls)
    assert encode(["15"]) == before
    assert encode(["a"]) == before + 1


@pytest.mark.parametrize("placement", [Placement(text_leaves=True), Placement("model")], ids=str)
def test_a_visit_of_text_encoders_serves_the_prompts_to_come(
    placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit what each prompt's own visit would have come to."""
    monkeypatch.setattr("pipelines.encoding.AHEAD", 3)
    family = FAMILIES["flux"]
    prompts = [f"{i} red circles" for i in range(4)]

    def made(expected: Sequence[str]) -> tuple[int, list[Any]]:
        pipe = family.build()
        visits, residence = [], Residence(pipe, "cpu", placement)
        real = residence.encoded
        residence.encoded = lambda: (visits.append(1), real())[1]  # type: ignore[method-assign]
        denoiser = Denoiser(pipe, family.call_args, residence)
        denoiser.expect(expected)
        moved = []
        for prompt in prompts:
            for seeds in ([0], [0, 1]):
                drawn = denoiser.draw(prompt, seeds)
                moved.append(denoiser.denoise(prompt, drawn.latents, seeds, 0, 1).latents)
        return len(visits), moved

    alone, each = made(())
    few, ahead = made(prompts)
    assert (alone, few) == (8, 4)  # 2 batch sizes, each in visits for 3 prompts and for 1
    assert all(torch.equal(*pair) for pair in zip(each, ahead, strict=True))


def test_text_encoders_that_stay_encode_nothing_ahead() -> None:
    family = FAMILIES["flux"]
    pipe = family.build()
    texts: list[Any] = []
    real = pipe.encode_prompt
    object.__setattr__(
        pipe, "encode_prompt", lambda *a, **k: (texts.append(k["prompt"]), real(*a, **k))[1]
    )
    denoiser = Denoiser(pipe, family.call_args, Residence(pipe, "cpu", Placement()))
    denoiser.expect(["a red circle", "a blue square"])
    denoiser.draw("a red circle", [0])
    assert texts == [["a red circle"]]


def test_a_prompt_that_cannot_be_encoded_waits_for_its_own_turn() -> None:
    class Leaving:
        encoders_leave = True

        def encoded(self) -> None: ...

    def encode(prompt: list[str], *, guided: bool) -> tuple[torch.Tensor, dict[str, Any], None]:
        if "bad" in prompt[0]:
            raise ValueError("bad prompt")
        asked.append(prompt[0])
        return torch.tensor([float(len(prompt[0]))]), {"mask": [torch.ones(2)]}, None

    asked: list[str] = []
    encodings = Encodings(encode, Leaving())  # type: ignore[arg-type]
    encodings.expect(["a", "bc", "bad", "def"])
    encodings.texts = ["a"]
    assert encodings(["a"], guided=True)[0].item() == 1
    assert asked == ["a", "bc"]
    length, mask, nothing = encodings(["bc"], guided=True)
    assert length.item() == 2 and torch.equal(mask["mask"][0], torch.ones(2)) and nothing is None
    assert asked == ["a", "bc"]
    with pytest.raises(ValueError, match="bad prompt"):
        encodings(["bad"], guided=True)
    encodings(["bc"], guided=False)  # another call, and no more of the prompts before it
    assert asked == ["a", "bc", "bc"]


def test_a_run_encodes_its_prompts_ahead_and_comes_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\na green star\n")
    asked = {"prompt": None, "prompts": str(prompts), "num_prompts": "all",
             "search_args": {"search_method": "random", "search_rounds": 1}}  # fmt: skip
    visits = []

    def leaving(pipe: Any, device: str, *_: Any, **__: Any) -> Residence:
        residence = Residence(pipe, device, Placement(text_leaves=True))
        real = residence.encoded
        residence.encoded = lambda: (visits.append(1), real())[1]  # type: ignore[method-assign]
        return residence

    expected = results(ran(tmp_path / "plain", **asked))
    monkeypatch.setattr("experiment.runner.settle", leaving)
    assert results(ran(tmp_path / "leaving", **asked)) == expected
    # The first prompt when its call is tried out, at the batch size of the run; a row alone, and
    # the round's two, for all three together.
    assert len(visits) == 3
