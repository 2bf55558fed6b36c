"""What every verifier keeps to, and CLIPScore against an independent computation."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image

from benchmarks.verifiers import small_options
from shapes.world import draw_scene, render
from utils import ROOT, UserError
from verifiers import VERIFIERS, build_verifier, verifier_class
from verifiers.base import BaseVerifier, Chosen, Item, Score, metric_name

CLIP = {"model_name": "shapes/models/shapes-clip"}
MEMBERS = [{"name": "clip", **CLIP}, {"name": "shapes_oracle", "weight": 2}]
ENSEMBLE = {"combine": "weighted", "verifiers": MEMBERS}
ELSEWHERE = {  # those that need a server or a model of their own: their tests hold the same
    "test_graders.py": ("gemini", "openai"),
    "test_preference_models.py": ("http",),
    "test_vlm.py": ("qwen",),
    "test_vqa.py": ("vqa",),
    "test_oracles.py": ("classifier", "fid", "inception_score", "self_similarity"),
}
HERE = sorted(set(VERIFIERS) - {name for names in ELSEWHERE.values() for name in names})


def pictures(n: int, size: int = 128) -> list[Image.Image]:
    colors = ["red", "green", "blue", "black", "white", "orange", "purple"]
    images = [Image.new("RGB", (size, size), "gray") for _ in range(n)]
    for i, image in enumerate(images):
        image.paste(colors[i % len(colors)], (10 + i, 20, 60 + 3 * i, 90))
    return images


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    small = small_options(tmp_path_factory.mktemp("checkpoints"))
    return {**small, "ensemble": ENSEMBLE}


@pytest.fixture(scope="module", params=HERE)
def verifier(request: pytest.FixtureRequest, options: dict[str, dict[str, Any]]) -> Chosen:
    built = build_verifier(request.param, None, options[request.param])
    built.load("cpu")
    return built


@pytest.mark.parametrize("file", ELSEWHERE)
def test_what_is_not_tested_here_is_tested_elsewhere(file: str) -> None:
    source = (ROOT / "tests" / file).read_text()
    assert all(name in source for name in ELSEWHERE[file])


@pytest.mark.parametrize("name", sorted(VERIFIERS))
def test_every_verifier_says_what_it_is(name: str) -> None:
    found = verifier_class(name)
    assert found.metrics and found.__doc__
    assert found.needs or name in ("contrast", "shapes_oracle")


def test_order_is_kept_and_every_metric_given(verifier: Chosen) -> None:
    prompts = ["a red square", "a green ring", "a blue star"]
    items = [Item(image, prompt) for image, prompt in zip(pictures(3), prompts, strict=True)]
    scores = verifier.score(items)
    backwards = verifier.score(items[::-1])[::-1]
    for score, other in zip(scores, backwards, strict=True):
        assert score.status == "ok"
        assert set(score.aspects) == set(verifier.verifier.metrics)
        assert score.value == pytest.approx(other.value, rel=1e-6, abs=1e-6)


def test_nothing_to_score_is_no_error(verifier: Chosen) -> None:
    assert verifier.score([]) == []


@pytest.mark.parametrize("prompt", ["", "word " * 2000, "猫 🎨 \x00", "a red circle\n"])
def test_any_prompt_gets_an_answer(verifier: Chosen, prompt: str) -> None:
    (score,) = verifier.score([Item(pictures(1)[0], prompt)])
    assert score.status == "ok" or score.explanation
    assert math.isnan(score.value) == (score.status != "ok")


@pytest.mark.parametrize("size", [1, 37, 512])
def test_any_image_size_gets_an_answer(verifier: Chosen, size: int) -> None:
    (score,) = verifier.score([Item(Image.new("RGB", (size, size), "red"), "a red circle")])
    assert score.status == "ok"


def clip(**options: object) -> Chosen:
    built = build_verifier("clip", "clip_score", {**CLIP, **options})
    built.load("cpu")
    return built


def test_clip_score_is_the_cosine_of_clips_own_embeddings() -> None:
    """Computed here from the towers and projections, and the pixels by hand."""
    from transformers import AutoTokenizer, CLIPModel

    model = CLIPModel.from_pretrained(CLIP["model_name"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(CLIP["model_name"])
    images, prompts = pictures(3), ["a red square", "two green rings on a black background", "x"]
    scores = clip().score([Item(i, p) for i, p in zip(images, prompts, strict=True)])
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    for image, prompt, score in zip(images, prompts, scores, strict=True):
        rgb = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(128, 128, 3)
        pixels = (rgb.permute(2, 0, 1).float() / 255 - mean) / std
        with torch.no_grad():
            pooled = model.vision_model(pixel_values=pixels[None]).pooler_output
            v = model.visual_projection(pooled)[0]
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            t = model.text_projection(model.text_model(input_ids=ids).pooler_output)[0]
        assert score.value == pytest.approx(float(v @ t / (v.norm() * t.norm())), abs=1e-5)


def test_clip_batches_change_nothing() -> None:
    items = [Item(image, "a red square") for image in pictures(5)]
    whole = [s.value for s in clip().score(items)]
    pairs = [s.value for s in clip(batch_size=2).score(items)]
    assert whole == pytest.approx(pairs, abs=1e-6)


def test_clip_prefers_the_true_caption() -> None:
    """Of 40 rendered scenes nearly all score above each of their hard negatives."""
    rng, light = random.Random(5), torch.Generator().manual_seed(5)
    scenes = [draw_scene(rng) for _ in range(40)]
    pixels = ((render(scenes, generator=light) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    verifier, right = clip(), 0
    for scene, image in zip(scenes, pixels, strict=True):
        picture = Image.fromarray(image.numpy())
        texts = [str(scene.claim), *scene.negatives]
        true, *false = verifier.score([Item(picture, text) for text in texts])
        right += all(true.value > score.value for score in false)
    assert right >= 34  # the bundled model is a good judge, not an exact one


@pytest.mark.parametrize(
    ("how", "join"), [("mean", fmean), ("min", min), ("last", lambda v: v[-1])]
)
def test_a_video_is_judged_by_its_first_middle_and_last_frame(how: str, join: Any) -> None:
    frames = pictures(7)
    (video,) = clip(frame_score=how).score([Item(frames, "a red square")])
    alone = clip().score([Item(frames[i], "a red square") for i in (0, 3, 6)])
    assert video.value == pytest.approx(join([s.value for s in alone]), abs=1e-6)


def test_a_video_of_fewer_frames_is_judged_whole() -> None:
    (video,) = clip().score([Item(pictures(2), "a red square")])
    alone = clip().score([Item(frame, "a red square") for frame in pictures(2)])
    assert video.value == pytest.approx(fmean(s.value for s in alone), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"batch_size": 0}, "at least 1"), ({"dtype": "int8"}, "fp32, fp16 or bf16")],
)
def test_clip_refuses_wrong_options(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_verifier("clip", "clip_score", {**CLIP, **options})


def test_a_folder_that_is_no_clip_is_refused() -> None:
    built = build_verifier("clip", "clip_score", {"model_name": "configs"})
    with pytest.raises(UserError, match="cannot be loaded"):
        built.load("cpu")


@dataclass
class Canned(BaseVerifier):
    metrics: ClassVar[tuple[str, ...]] = ("a", "b")
    answers: tuple[Score, ...] = ()

    def score(self, items: Sequence[Item]) -> list[Score]:
        return list(self.answers)


def test_the_value_is_the_chosen_metric_or_a_weighted_sum() -> None:
    canned = Canned((Score.of(a=1.0, b=10.0),))
    item = Item(None, "")
    assert Chosen(canned, "canned", "b").score([item])[0].value == 10.0
    assert Chosen(canned, "canned", {"a": 2.0, "b": 0.5}).score([item])[0].value == 7.0
    assert metric_name({"a": 2.0, "b": 0.5}) == "a+b"
    with pytest.raises(UserError, match="no metric 'c'"):
        Chosen(canned, "canned", {"a": 1, "c": 1})


@pytest.mark.parametrize(
    "answer",
    [Score.of(a=math.nan, b=1.0), Score.of(a=math.inf, b=1.0), Score(1.0, {"b": 1.0}),
     Score.missing("no", "blocked")],
)  # fmt: skip
def test_what_is_no_number_is_no_score(answer: Score) -> None:
    (score,) = Chosen(Canned((answer,)), "canned", "a").score([Item(None, "")])
    assert math.isnan(score.value) and score.status != "ok" and score.explanation


def test_a_verifier_that_loses_an_item_is_caught() -> None:
    with pytest.raises(UserError, match="1 score for 2 items"):
        Chosen(Canned((Score.of(a=1.0, b=1.0),)), "canned", "a").score([Item(None, "")] * 2)
