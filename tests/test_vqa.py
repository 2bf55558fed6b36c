"""VQAScore against the models' own logits, worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.tiny_vlm import SAVE, items, loaded, save_qwen2_5
from utils import UserError
from verifiers import build_verifier, vqa
from verifiers.vqa import NO, YES, Vqa, single_tokens


@pytest.fixture(scope="module", params=sorted(SAVE))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of each kind."""
    path: Path = SAVE[request.param](tmp_path_factory.mktemp(request.param))
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One checkpoint, where the kind makes no difference."""
    return str(save_qwen2_5(tmp_path_factory.mktemp("one")))


def by_hand(folder: str, image: Image.Image, question: str) -> torch.Tensor:
    """Logits behind the question: text and image tokens put together here."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLImageProcessorPil

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    shown = Qwen2VLImageProcessorPil.from_pretrained(folder)([image], return_tensors="pt")
    pads = "<|image_pad|>" * (int(shown["image_grid_thw"].prod()) // 4)
    ids = tokenizer(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"<|vision_start|>{pads}<|vision_end|>{question}<|im_end|>\n<|im_start|>assistant\n",
        return_tensors="pt",
    ).input_ids
    kinds = (ids == model.config.image_token_id).int()
    with torch.no_grad():
        output = model(input_ids=ids, mm_token_type_ids=kinds, **shown)
    last: torch.Tensor = output.logits[0, -1]
    return last


def test_vqa_is_yes_against_no_in_the_models_logits(folder: str) -> None:
    verifier = loaded(Vqa, folder)
    tokenizer = verifier._vlm.processor.tokenizer
    for item in items()[:2]:
        question = f'Does this figure show "{item.prompt}"? Please answer yes or no.'
        shares = by_hand(folder, item.media.convert("RGB"), question).softmax(dim=0)
        yes, no = (
            sum(float(shares[i]) for i in single_tokens(tokenizer, words)) for words in (YES, NO)
        )
        (score,) = verifier.score([item])
        assert score.aspects == {"vqa_score": score.value}
        assert score.value == pytest.approx(yes / (yes + no), abs=1e-5)
        assert score.details["answered"] == pytest.approx(yes + no, abs=1e-5)


def test_vqa_of_a_batch_is_vqa_of_each_alone(folder: str) -> None:
    verifier = loaded(Vqa, folder)
    scores = [score.value for score in verifier.score(items())]
    alone = [verifier.score([item])[0].value for item in items()]
    assert scores == pytest.approx(alone, abs=1e-5)
    assert all(0 <= value <= 1 for value in scores)


def test_yes_and_no_make_one(checkpoint: str) -> None:
    verifier = loaded(Vqa, checkpoint)
    yes = [score.value for score in verifier.score(items())]
    verifier._yes, verifier._no = verifier._no, verifier._yes
    no = [score.value for score in verifier.score(items())]
    assert [a + b for a, b in zip(yes, no, strict=True)] == pytest.approx([1.0] * 3)


def test_vqa_asks_the_users_own_question(checkpoint: str) -> None:
    verifier = loaded(Vqa, checkpoint, question="Is {this} a {prompt}?")
    tokens = verifier._inputs([items()[0]])["input_ids"][0]
    asked = verifier._vlm.processor.tokenizer.decode(tokens)
    assert "Is {this} a a red square?" in asked


def test_a_tokenizer_without_yes_is_refused(
    checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vqa, "YES", ("Yes, by all means",))
    with pytest.raises(UserError, match="no single token"):
        loaded(Vqa, checkpoint)


def test_a_question_without_the_prompt_is_refused() -> None:
    with pytest.raises(UserError, match="must contain"):
        build_verifier("verifiers.vqa:Vqa", None, {"question": "Is it pretty?"})
