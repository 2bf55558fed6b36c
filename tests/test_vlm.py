"""Graders in this process, on tiny models with random weights: their answers are valid anyway."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import vlm as random_qwen
from tests.tiny_vlm import SAVE, items, loaded, save_qwen2_5
from utils import UserError
from verifiers import build_verifier, qwen, rubric
from verifiers.base import Item, Score
from verifiers.qwen import Qwen
from verifiers.rubric import ASPECTS
from verifiers.vlm import Vlm, load_processor
from verifiers.vqa import Vqa


@pytest.fixture(scope="module", params=sorted(SAVE))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of each kind."""
    path: Path = SAVE[request.param](tmp_path_factory.mktemp(request.param))
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One checkpoint, where the kind makes no difference."""
    return str(save_qwen2_5(tmp_path_factory.mktemp("one")))


@pytest.fixture
def brief() -> Iterator[None]:
    """Explanations of 40 characters: random weights always write the longest there may be."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rubric, "LONGEST_EXPLANATION", 40)
        yield


def assert_graded(score: Score) -> None:
    assert score.status == "ok", score.explanation
    assert tuple(score.aspects) == ASPECTS
    for value in score.aspects.values():
        assert 0 <= value <= 10 and value == round(value, 1)
    assert score.value == score.aspects["overall_score"]


def test_every_image_of_a_batch_is_graded_as_alone(folder: str, brief: None) -> None:
    grader = loaded(Qwen, folder)
    scores = grader.score(items())
    for score in scores:
        assert_graded(score)
        assert score.explanation and score.details["model"] == folder
        assert set(score.details["explanations"]) == set(ASPECTS)
    assert [grader.score([item])[0] for item in items()] == scores
    assert len({score.explanation for score in scores}) == 3  # each saw its own image


def test_scores_alone_come_without_explanations(folder: str) -> None:
    grader = loaded(Qwen, folder, mode="scores_only", batch_size=2)
    scores = grader.score(items())
    for score in scores:
        assert_graded(score)
        assert score.explanation == ""
    assert loaded(Qwen, folder, mode="scores_only").score(items()) == scores


@pytest.mark.slow
def test_explanations_of_full_length_end_within_their_bounds(folder: str) -> None:
    for score in loaded(Qwen, folder, max_new_tokens=2500).score(items()):
        assert_graded(score)
        assert len(score.explanation) <= rubric.LONGEST_EXPLANATION


def test_an_answer_cut_off_is_truncated(checkpoint: str) -> None:
    for score in loaded(Qwen, checkpoint, max_new_tokens=20).score(items()):
        assert score.status == "truncated" and score.value != score.value
        assert "20 tokens" in score.explanation


def test_the_users_own_rubric_is_asked(checkpoint: str, tmp_path: Path) -> None:
    path = tmp_path / "hats.txt"
    path.write_text("Judge the hats only.", encoding="utf-8")
    grader = loaded(Qwen, checkpoint, mode="scores_only", prompt_path=str(path))
    tokens = grader._inputs(items()[:1])["input_ids"][0]
    asked = grader._vlm.processor.tokenizer.decode(tokens)
    assert "Judge the hats only." in asked and "exacting judge" not in asked
    assert "a red square" in asked and "<|image_pad|>" in asked
    assert_graded(grader.score(items()[:1])[0])


def test_drawn_answers_depend_on_the_seed_and_leave_the_global_noise(checkpoint: str) -> None:
    def drawn(seed: int) -> list[Score]:
        options = {"mode": "scores_only", "temperature": 3.0, "seed": seed}
        return list(loaded(Qwen, checkpoint, **options).score(items()))

    before = torch.get_rng_state()
    first, again, other = drawn(1), drawn(1), drawn(2)
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)


def test_a_checkpoints_own_sampling_is_not_followed(checkpoint: str) -> None:
    """Its repetition penalty would keep a grader from giving the same score twice."""
    config = loaded(Qwen, checkpoint)._vlm.model.generation_config
    assert not config.repetition_penalty and not config.do_sample
    assert not torch._dynamo.config.suppress_errors


def test_an_answer_compiles_nothing_and_leaves_other_threads_compiled(checkpoint: str) -> None:
    """A denoiser on another device goes on with its graphs while this one writes."""
    grader, ran = loaded(Qwen, checkpoint, mode="scores_only"), []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        def counted(*values: Any) -> Any:
            ran.append(1)
            return graph.forward(*values)

        return counted

    compiled, one = torch.compile(lambda x: x * 2 + 1, backend=backend), torch.ones(3)
    compiled(one)
    before, graphs = len(ran), torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with ThreadPoolExecutor(1) as pool:

        def elsewhere(*_: Any) -> None:
            pool.submit(compiled, one).result()

        grader._vlm.model.register_forward_pre_hook(elsewhere)
        grader.score(items()[:1])
    assert len(ran) - before > 20  # one a token
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("build", [Qwen, Vqa])
def test_an_item_that_cannot_be_shown_costs_no_other(build: Any, checkpoint: str) -> None:
    options = {"mode": "scores_only"} if build is Qwen else {}
    verifier = loaded(build, checkpoint, **options)
    ribbon = Image.new("RGB", (1, 400))  # Qwen takes no image 200 times as long as wide
    none, good, thin = verifier.score([Item(None, "x"), items()[0], Item(ribbon, "x")])
    assert (none.status, good.status, thin.status) == ("invalid_image", "ok", "invalid_image")
    assert "aspect ratio" in thin.explanation
    assert verifier.score([items()[0]]) == [good]
    assert verifier.score([]) == []


def test_half_precision_works(checkpoint: str) -> None:
    for build, options in ((Qwen, {"mode": "scores_only"}), (Vqa, {})):
        (score,) = loaded(build, checkpoint, dtype="bf16", **options).score(items()[:1])
        assert score.status == "ok"


def test_images_are_resized_into_the_given_limits(folder: str) -> None:
    big, small = Item(Image.new("RGB", (300, 300)), "x"), Item(Image.new("RGB", (8, 8)), "x")
    verifier = loaded(Vqa, folder, min_pixels=10_000, max_pixels=20_000)
    side = verifier._vlm.processor.image_processor.patch_size
    for _, rows, columns in verifier._inputs([big, small])["image_grid_thw"].tolist():
        assert 10_000 <= rows * columns * side**2 <= 20_000


def test_a_thinking_model_is_told_not_to(checkpoint: str) -> None:
    verifier = loaded(Vqa, checkpoint)
    processor = verifier._vlm.processor
    processor.chat_template += "{% if enable_thinking is not defined %}<think>{% endif %}"
    tokens = verifier._inputs(items()[:1])["input_ids"][0]
    assert "<think>" not in processor.tokenizer.decode(tokens)


class Weights:
    """Where a model's weights went."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.places: list[str] = []

    def to(self, device: torch.device) -> None:
        self.device = device
        self.places.append(str(device))


@pytest.mark.parametrize("build", [Qwen, Vqa])
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_weights_leave_when_told_and_come_back_to_score(build: Any, device: str) -> None:
    verifier = build()
    weights = Weights("cuda:1")
    verifier._vlm = Vlm(weights, None, device)
    verifier.onload()
    assert weights.places == []
    verifier.offload()
    verifier.offload()
    assert weights.places == ["cpu"]
    verifier.score([])
    verifier.score([])
    assert weights.places == ["cpu", device]


def test_torchvision_is_never_needed(folder: str) -> None:
    from transformers import AutoConfig

    processor = load_processor(folder, AutoConfig.from_pretrained(folder), {})
    assert type(processor.image_processor).__name__.endswith("Pil")
    assert "torchvision" not in sys.modules


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "short"}, "full or scores_only"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"temperature": -1.0}, "at least 0"),
        ({"batch_size": 0}, "at least 1"),
        ({"dtype": "int8"}, "fp32, fp16 or bf16"),
        ({"min_pixels": 9, "max_pixels": 8}, "at least min_pixels"),
        ({"min_pixels": 0}, "at least 1"),
        ({"prompt_path": "nowhere.txt"}, "no file"),
        ({"model_name": "no/such/checkpoint"}, "no checkpoint"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_verifier("verifiers.qwen:Qwen", None, options)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qwen, "find_spec", lambda name: None if name == "outlines" else name)
    with pytest.raises(UserError, match=r"'outlines' is missing.*pip install") as caught:
        build_verifier("verifiers.qwen:Qwen", None, {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["configs", "shapes/models/shapes-clip", "nobody/nothing"])
def test_what_is_no_vision_language_model_is_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        loaded(Vqa, name)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_chat_template_is_refused(checkpoint: str, tmp_path: Path) -> None:
    for file in Path(checkpoint).iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "chat_template.json").unlink()
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": None}))
    with pytest.raises(UserError, match="no chat template"):
        loaded(Vqa, str(tmp_path))


def test_a_judge_of_random_weights_gives_scores_alone() -> None:
    judge = random_qwen.judge("cpu", tiny=True)
    judge.verifier.batch_size = 2  # type: ignore[attr-defined]
    found = random_qwen.alone(judge, (56, 56), lambda: None)
    assert found["unscored"] == 0 and 40 < found["answered_tokens"] < 120
    assert found["asked_tokens"] > 500  # the rubric
    (score,) = judge.score([Item(Image.new("RGB", (56, 56)), "a red circle")])
    assert 0 <= score.value <= 10
