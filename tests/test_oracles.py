"""Judges by features and classes, against transformers' own forward and closed forms."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.test_run import ran, rows_of
from utils import UserError
from verifiers import build_verifier
from verifiers.base import Chosen, Item, Score
from verifiers.features import Seen, VisionModel
from verifiers.frechet import Gaussian, GrowingSet, frechet_distance, gaussian_of, load_statistics
from verifiers.inception_score import ClassTally

CLIP = "shapes/models/shapes-clip"
LABELS = ["tench, Tinca tinca", "crane", "great_white shark, white shark, man-eater", "crane, lift",
          "maillot", "maillot, tank suit", "7"]  # fmt: skip
SIDE = 28
NAMES = {
    "self_similarity": "verifiers.self_similarity:SelfSimilarity",
    "classifier": "verifiers.classifier:Classifier",
    "inception_score": "verifiers.inception_score:InceptionScore",
    "fid": "verifiers.fid:Fid",
}
METRICS = {
    "self_similarity": {"self_similarity"},
    "classifier": {"class_log_prob", "class_prob"},
    "inception_score": {"inception_score"},
    "fid": {"negative_fid"},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Tiny random models, saved with their preprocessing."""
    from transformers import (
        BitImageProcessorPil,
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPVisionModel,
        Dinov2Config,
        Dinov2Model,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessorPil,
        ViTModel,
    )

    torch.manual_seed(0)
    tower = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 32}  # fmt: skip
    seen = {**tower, "image_size": SIDE, "patch_size": 14}
    # Random weights of the usual size make all images look alike.
    vivid = {"initializer_range": 0.3}
    square = {"height": SIDE, "width": SIDE}
    crop = {"size": {"shortest_edge": SIDE}, "crop_size": square}
    names = dict(enumerate(LABELS))
    vit = ViTConfig(**seen, **vivid, id2label=names, label2id={v: k for k, v in names.items()})
    clip = CLIPModel(
        CLIPConfig(
            text_config={**tower, "vocab_size": 32}, vision_config=seen, projection_dim=12,
        )
    )  # fmt: skip
    bit, plain = BitImageProcessorPil(**crop), ViTImageProcessorPil(size=square)
    made: dict[str, tuple[Any, Any]] = {
        "dinov2": (Dinov2Model(Dinov2Config(**seen, **vivid, mlp_ratio=2)), bit),
        "clip": (clip, CLIPImageProcessorPil(**crop)),
        "clip-vision": (CLIPVisionModel(clip.config.vision_config), CLIPImageProcessorPil(**crop)),
        "vit": (ViTForImageClassification(vit), plain),
        "vit-unpooled": (ViTModel(ViTConfig(**seen), add_pooling_layer=False), plain),
    }
    root = tmp_path_factory.mktemp("models")
    for name, (model, processor) in made.items():
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return {name: str(root / name) for name in made}


def pictures(n: int, seed: int = 0, size: int = SIDE) -> list[Image.Image]:
    """Colored rectangles on colored grounds."""
    rng = random.Random(seed)
    images = []
    for _ in range(n):
        color, ground = (tuple(rng.randrange(256) for _ in range(3)) for _ in range(2))
        image = Image.new("RGB", (size, size), ground)
        left, top = rng.randrange(size // 2), rng.randrange(size // 2)
        image.paste(color, (left, top, left + size // 3, top + size // 3))
        images.append(image)
    return images


def pixels_of(image: Image.Image, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    rgb = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
    return ((rgb - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])[None]


def seen_of(
    model: str, images: Sequence[Any], batch_size: int = 4, dtype: str = "fp32"
) -> list[Seen]:
    vision = VisionModel(model, batch_size=batch_size, dtype=dtype, device="cpu", classifies=False)
    found = vision.see(images)
    assert all(isinstance(seen, Seen) for seen in found)
    return [seen for seen in found if isinstance(seen, Seen)]


def built(name: str, model: str, **options: Any) -> Chosen:
    verifier = build_verifier(NAMES[name], None, {"model_name": model, **options})
    verifier.load("cpu")
    return verifier


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of images in subfolders, as ImageNet has them."""
    root = tmp_path_factory.mktemp("real")
    for i, image in enumerate(pictures(40, seed=7)):
        (root / str(i % 3)).mkdir(exist_ok=True)
        image.save(root / str(i % 3) / f"{i}.png")
    return str(root)


@pytest.fixture(params=sorted(NAMES))
def verifier(request: pytest.FixtureRequest, models: dict[str, str], reference: str) -> Chosen:
    name = request.param
    more = {"statistics": reference} if name == "fid" else {}
    return built(name, models["vit"], **more)


# Features


def test_features_are_those_of_transformers(models: dict[str, str]) -> None:
    """Each architecture's own forward, on pixels normalised by hand."""
    from transformers import AutoModel, ViTForImageClassification
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    half = [0.5] * 3
    images = pictures(5)
    for name in models:
        means = (half, half) if name.startswith("vit") else (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        build = ViTForImageClassification if name == "vit" else AutoModel
        model = build.from_pretrained(models[name]).eval()
        for image, seen in zip(images, seen_of(models[name], images), strict=True):
            pixels = pixels_of(image, *means)
            with torch.no_grad():
                if name == "clip":
                    pooled = model.vision_model(pixel_values=pixels).pooler_output
                    wanted = model.visual_projection(pooled)
                elif name == "vit":
                    wanted = model.vit(pixels).last_hidden_state[:, 0]  # what `classifier` reads
                elif name == "vit-unpooled":  # its pooler would be random
                    wanted = model(pixels).last_hidden_state[:, 0]
                else:
                    wanted = model(pixels).pooler_output
                torch.testing.assert_close(seen.features, wanted[0], rtol=1e-4, atol=1e-5)
                if name == "vit":
                    logits = model(pixels).logits[0]
                    assert seen.log_probs is not None
                    torch.testing.assert_close(seen.log_probs, logits.log_softmax(0))
                else:
                    assert seen.log_probs is None


def test_the_bundled_clips_features_are_its_embeddings() -> None:
    from transformers import CLIPModel
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    (image,) = pictures(1, size=128)
    (seen,) = seen_of(CLIP, [image])
    pixels = pixels_of(image, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    with torch.no_grad():
        wanted = (
            CLIPModel.from_pretrained(CLIP, dtype=torch.float32)
            .eval()
            .get_image_features(pixels)
            .pooler_output
        )
    torch.testing.assert_close(seen.features, wanted[0], rtol=1e-4, atol=1e-5)


def test_batches_and_sizes_change_nothing(models: dict[str, str]) -> None:
    images = [*pictures(5), *pictures(2, size=60)]
    whole = seen_of(models["dinov2"], images, batch_size=16)
    for a, b in zip(whole, seen_of(models["dinov2"], images, batch_size=2), strict=True):
        torch.testing.assert_close(a.features, b.features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_gives_nearly_the_same(models: dict[str, str], dtype: str) -> None:
    images = pictures(3)
    halves = seen_of(models["vit"], images, dtype=dtype)
    for a, b in zip(seen_of(models["vit"], images), halves, strict=True):
        assert b.features.dtype == torch.float32
        assert torch.cosine_similarity(a.features, b.features, dim=0) > 0.999


def test_images_that_keep_their_shape_are_batched_by_it(tmp_path: Path) -> None:
    from transformers import ConvNextConfig, ConvNextImageProcessorPil, ConvNextModel

    ConvNextModel(ConvNextConfig(hidden_sizes=[4, 4, 4, 8], depths=[1, 1, 1, 1])).save_pretrained(
        tmp_path
    )
    ConvNextImageProcessorPil(do_resize=False).save_pretrained(tmp_path)
    images = [*pictures(2, size=64), *pictures(2, size=96), *pictures(1, size=64)]
    whole = seen_of(str(tmp_path), images)
    alone = [seen_of(str(tmp_path), [image])[0] for image in images]
    for a, b in zip(whole, alone, strict=True):
        assert a.features.shape == (8,)
        torch.testing.assert_close(a.features, b.features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "saved",
    [
        {"feature_extractor_type": "ViTFeatureExtractor"},
        {"image_processor_type": "ViTImageProcessor"},
        {"image_processor_type": "ViTImageProcessorFast"},
    ],
)
def test_old_checkpoints_preprocessing_is_read(
    models: dict[str, str], tmp_path: Path, saved: dict[str, str]
) -> None:
    for file in Path(models["vit"]).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    old = {**saved, "size": SIDE, "do_resize": True, "do_normalize": True,
           "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    images = pictures(2)
    for a, b in zip(seen_of(models["vit"], images), seen_of(str(tmp_path), images), strict=True):
        torch.testing.assert_close(a.features, b.features)


# What all four keep to


def test_order_is_kept_and_every_metric_given(verifier: Chosen) -> None:
    images, prompts = pictures(3), ["tench", "7", "class 1"]
    items = [Item(i, p, e) for i, p, e in zip(images, prompts, pictures(3, seed=1), strict=True)]
    scores = verifier.score(items)
    backwards = verifier.score(items[::-1])[::-1]
    name = next(name for name, path in NAMES.items() if path == verifier.name)
    for score, other in zip(scores, backwards, strict=True):
        assert score.status == "ok" and set(score.aspects) == METRICS[name]
        assert score.value == pytest.approx(other.value, abs=1e-6)
    assert verifier.score([]) == []


@pytest.mark.parametrize("prompt", ["", "word " * 2000, "猫 🎨 \x00", "a red circle\n", "\ud800"])
@pytest.mark.parametrize("size", [1, 37, 512])
def test_any_prompt_and_size_gets_an_answer(verifier: Chosen, prompt: str, size: int) -> None:
    (image,) = pictures(1, size=max(size, 3))
    image = image.resize((size, size))
    (score,) = verifier.score([Item(image, prompt, image)])
    assert score.status == "ok" or score.explanation
    assert math.isnan(score.value) == (score.status != "ok")
    assert len(score.explanation) < 400


def test_an_unreadable_image_costs_its_own_score(verifier: Chosen) -> None:
    good, bad = pictures(2), object()
    items = [Item(good[0], "7", good[0]), Item(bad, "7", good[0]), Item(good[1], "7", good[1])]
    statuses = [score.status for score in verifier.score(items)]
    assert statuses == ["ok", "invalid_image", "ok"]
    verifier.chose(items[1])  # nothing to add
    verifier.chose(Item(good, "7"))  # a video: its frames


def test_numbers_that_are_not_finite_are_no_score(models: dict[str, str]) -> None:
    verifier = built("inception_score", models["vit"])
    vision: Any = verifier.verifier.verifier._vision  # type: ignore[attr-defined]
    vision._model.classifier.weight.fill_(math.inf)
    (score,) = verifier.score([Item(pictures(1)[0], "")])
    assert score.status == "failed" and "finite" in score.explanation


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("self_similarity", {"batch_size": 0}, "at least 1"),
        ("classifier", {"dtype": "int8"}, "fp32, fp16 or bf16"),
        ("self_similarity", {"noise": 1.0}, "between 0 and 1"),
        ("self_similarity", {"noise": 0.0}, "between 0 and 1"),
        ("classifier", {"model_name": "no such model"}, "no checkpoint"),
        ("fid", {}, "needs verifier_args.statistics"),
        ("fid", {"statistics": "no/such.npz"}, "no statistics 'no/such.npz'"),
        ("fid", {"statistics": "configs"}, "two images or more"),
        ("fid", {"statistics": "README.md"}, "no known kind"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_loaded(
    name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        build_verifier(NAMES[name], None, {"model_name": CLIP, **options})


@pytest.mark.parametrize(
    ("name", "model", "said"),
    [
        ("classifier", CLIP, "image classifier '.*' cannot be loaded: it lacks"),
        ("self_similarity", "configs", "vision model 'configs' cannot be loaded"),
        ("self_similarity", "shapes/models/shapes-flux/text_encoder", "cannot be loaded"),
    ],
)
def test_a_model_of_another_kind_is_refused(name: str, model: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as told:
        built(name, model)
    assert "\n" not in str(told.value)


# Self-similarity


def test_self_similarity_is_the_cosine_of_preview_and_picture(models: dict[str, str]) -> None:
    late, early = pictures(3), pictures(3, seed=1)
    verifier = built("self_similarity", models["dinov2"], noise=0.25, batch_size=2)
    assert verifier.preview_noise == 0.25
    items = [Item(a, "anything", b) for a, b in zip(late, early, strict=True)]
    scores = verifier.score([items[0], Item(late[1], ""), *items[1:]])
    assert scores[1].status == "unscored" and "no preview" in scores[1].explanation
    del scores[1]
    a = torch.stack([seen.features for seen in seen_of(models["dinov2"], late)])
    b = torch.stack([seen.features for seen in seen_of(models["dinov2"], early)])
    cosines = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    assert [s.value for s in scores] == pytest.approx(cosines.tolist(), abs=1e-5)
    assert verifier.score([Item(late[0], "", late[0])])[0].value == pytest.approx(1.0)


@pytest.mark.slow
def test_in_a_run_an_estimate_with_less_noise_is_more_like_the_picture(tmp_path: Path) -> None:
    runs = []
    for noise in (0.95, 0.6, 0.2):
        folder = ran(
            tmp_path / str(noise),
            verifier_args={"name": NAMES["self_similarity"], "model_name": CLIP, "noise": noise},
            pipeline_call_args={
                "height": 128, "width": 128, "max_sequence_length": 32, "num_inference_steps": 6,
            },
            search_args={"search_method": "random", "search_rounds": 1},
        )  # fmt: skip
        runs.append([row["score"] for row in rows_of(folder)])
    for early, middle, late in zip(*runs, strict=True):  # the same seeds in each run
        assert -1 < early < middle < late < 1


# Classifier


def test_class_log_prob_is_the_models_log_softmax(models: dict[str, str]) -> None:
    from transformers import ViTForImageClassification

    model = ViTForImageClassification.from_pretrained(models["vit"]).eval()
    verifier = built("classifier", models["vit"])
    for image in pictures(3):
        with torch.no_grad():
            logits = model(pixels_of(image, [0.5] * 3, [0.5] * 3)).logits[0].double()
        probs = (logits - logits.max()).exp() / (logits - logits.max()).exp().sum()
        for index in range(6):
            (score,) = verifier.score([Item(image, f"class {index}")])
            assert score.aspects["class_prob"] == pytest.approx(float(probs[index]), rel=1e-4)
            assert score.value == pytest.approx(math.log(probs[index]), abs=1e-4)


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        ("tench", 0), ("Tinca Tinca", 0), ("tench, tinca tinca", 0), (" TENCH\n", 0),
        ("great white shark", 2), ("man-eater", 2), ("great_white_shark", 2),
        ("crane", 1), ("lift", 3), ("crane, lift", 3), ("maillot", 4), ("tank suit", 5),
        ("0", 0), ("class 3", 3), ("Class 3", 3), ("003", 3),
        ("7", 6),  # the name "7" of class 6: there is no class of the index 7
    ],
)  # fmt: skip
def test_a_class_is_found_by_name_synonym_or_index(
    models: dict[str, str], asked: str, index: int
) -> None:
    verifier = built("classifier", models["vit"])
    (image,) = pictures(1)
    by_prompt, by_label, wanted = verifier.score(
        [Item(image, asked), Item(image, "whatever", label=asked), Item(image, f"class {index}")]
    )
    assert by_prompt.value == by_label.value == wanted.value
    assert (
        len({s.value for s in verifier.score([Item(image, f"class {i}") for i in range(6)])}) == 6
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [("tensch", "'tench'"), ("class 8", "7 classes"), ("-1", "7 classes"), ("٣", "7 classes")],
)
def test_an_unknown_class_is_no_score_and_names_the_nearest(
    models: dict[str, str], asked: str, said: str
) -> None:
    (image,) = pictures(1)
    scores = built("classifier", models["vit"]).score([Item(image, asked), Item(image, "7")])
    assert [s.status for s in scores] == ["unscored", "ok"]
    assert said in scores[0].explanation and "nearest name" in scores[0].explanation


# Fréchet distance


def gaussian(seed: int, d: int = 6, rank: int | None = None) -> Gaussian:
    rng = torch.Generator().manual_seed(seed)
    factor = torch.randn(d, rank or d, generator=rng, dtype=torch.float64)
    mean = torch.randn(d, generator=rng, dtype=torch.float64)
    return Gaussian(mean, factor @ factor.T)


def test_frechet_distance_of_diagonal_gaussians_has_a_closed_form() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 5, generator=rng, dtype=torch.float64)
    m, n = torch.randn(2, 5, generator=rng, dtype=torch.float64)
    apart = float(((m - n) ** 2).sum() + ((a.sqrt() - b.sqrt()) ** 2).sum())
    assert frechet_distance(Gaussian(m, a.diag()), Gaussian(n, b.diag())) == pytest.approx(apart)


@pytest.mark.parametrize("ranks", [(6, 6), (3, 6), (2, 3), (1, 1)])
def test_frechet_distance_is_symmetric_and_that_of_numpys_eigenvalues(
    ranks: tuple[int, int],
) -> None:
    """tr (S1 S2)^{1/2} from the eigenvalues of the product, which is not symmetric itself."""
    a, b = gaussian(1, rank=ranks[0]), gaussian(2, rank=ranks[1])
    values = np.linalg.eigvals(a.covariance.numpy() @ b.covariance.numpy())
    cross = np.sqrt(np.clip(values.real, 0, None)).sum()
    apart = float(((a.mean - b.mean) ** 2).sum() + a.covariance.trace() + b.covariance.trace())
    # A root turns rounding at 1e-16 into 1e-8, for each eigenvalue that should be zero.
    assert frechet_distance(a, b) == pytest.approx(apart - 2 * cross, abs=1e-5)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-5)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-5)


def test_frechet_distance_to_a_point_is_the_squared_distance_and_the_trace() -> None:
    a, point = gaussian(3), gaussian_of([torch.ones(1, 6)])
    assert point.covariance.abs().max() == 0
    wanted = float(((a.mean - 1) ** 2).sum() + a.covariance.trace())
    assert frechet_distance(a, point) == pytest.approx(wanted)


def test_statistics_in_batches_are_those_of_numpy() -> None:
    x = torch.randn(23, 5, generator=torch.Generator().manual_seed(0)) + 100
    found = gaussian_of(x.split(4))
    np.testing.assert_allclose(found.mean.numpy(), x.double().mean(0).numpy())
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(x.double().numpy().T))


@pytest.mark.parametrize("rank", [5, 2])
def test_a_growing_set_has_the_distance_of_the_whole_at_every_size(rank: int) -> None:
    """Beyond five members of width five, too, where the factor is folded."""
    target = gaussian(4, d=5, rank=rank)
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(1)) * 2 + 3
    grown = GrowingSet(target)
    for n in range(1, 12):
        whole = frechet_distance(gaussian_of([x[:n]]), target)
        assert grown.distance_with(x[n - 1]) == pytest.approx(whole, abs=1e-5)
        elsewhere = frechet_distance(gaussian_of([torch.cat([x[: n - 1], x[11:]])]), target)
        assert grown.distance_with(x[11]) == pytest.approx(elsewhere, abs=1e-5)
        grown.add(x[n - 1])
    assert grown.count == 11


# FID


def test_choosing_by_fid_brings_the_set_nearer_than_chance(
    models: dict[str, str], reference: str
) -> None:
    verifier = built("fid", models["dinov2"], statistics=reference)
    real = [Image.open(p).convert("RGB") for p in sorted(Path(reference).rglob("*.png"))]
    target = gaussian_of([torch.stack([s.features for s in seen_of(models["dinov2"], real)])])
    pools = [pictures(6, seed=100 + i) for i in range(12)]
    seen = [seen_of(models["dinov2"], pool) for pool in pools]
    chosen, last = [], math.nan
    for pool, features in zip(pools, seen, strict=True):
        scores = [s.value for s in verifier.score([Item(image, "") for image in pool])]
        best = max(range(len(pool)), key=scores.__getitem__)
        last = -scores[best]
        verifier.chose(Item(pool[best], ""))
        chosen.append(features[best].features)
    distance = frechet_distance(gaussian_of([torch.stack(chosen)]), target)
    assert distance == pytest.approx(last, rel=1e-4)
    rng = random.Random(0)
    by_chance = [
        frechet_distance(
            gaussian_of([torch.stack([rng.choice(features).features for features in seen])]), target
        )
        for _ in range(50)
    ]
    assert distance < min(by_chance)


def test_statistics_may_be_arrays_or_images(
    models: dict[str, str], reference: str, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    real = [Image.open(p).convert("RGB") for p in sorted(Path(reference).rglob("*.png"))]
    target = gaussian_of([torch.stack([s.features for s in seen_of(models["vit"], real)])])
    np.savez(tmp_path / "s.npz", mu=target.mean.numpy(), sigma=target.covariance.numpy())
    save_file({"mu": target.mean, "sigma": target.covariance}, tmp_path / "s.safetensors")
    items = [Item(image, "") for image in pictures(3)]
    found = []
    for statistics in (reference, str(tmp_path / "s.npz"), str(tmp_path / "s.safetensors")):
        verifier = built("fid", models["vit"], statistics=statistics)
        before = verifier.score(items)
        verifier.chose(items[0])
        verifier.chose(items[1])
        after = verifier.score(items)
        assert [score.details for score in (before[0], after[0])] == [{"chosen": 0}, {"chosen": 2}]
        assert all(a.value != b.value for a, b in zip(before, after, strict=True))
        found.append([score.value for score in (*before, *after)])
    assert found[0] == pytest.approx(found[1]) and found[1] == pytest.approx(found[2])


def test_statistics_of_another_model_are_refused_before_anything_is_scored(
    models: dict[str, str], tmp_path: Path
) -> None:
    np.savez(tmp_path / "inception.npz", mu=np.zeros(20), sigma=np.eye(20))
    with pytest.raises(UserError, match=r"20 features and .* gives 16"):
        built("fid", models["vit"], statistics=str(tmp_path / "inception.npz"))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"mu": np.zeros(3)}, "cannot be read"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "must be"),
        ({"mu": np.zeros(3), "sigma": np.eye(3) * np.nan}, "not finite"),
        ({"mu": np.array([{}]), "sigma": np.eye(1)}, "cannot be read"),  # a pickle
        (None, "cannot be read"),
    ],
)
def test_broken_statistics_are_refused(
    tmp_path: Path, arrays: dict[str, Any] | None, said: str
) -> None:
    path = tmp_path / "s.npz"
    if arrays is None:
        path.write_bytes(b"PK\x03\x04 no zip at all")
    else:
        np.savez(path, **arrays)
    with pytest.raises(UserError, match=said):
        load_statistics(path)


def test_a_broken_image_among_the_statistics_is_named(
    models: dict[str, str], tmp_path: Path
) -> None:
    for i, image in enumerate(pictures(2)):
        image.save(tmp_path / f"{i}.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken\.jpg' cannot be read"):
        built("fid", models["vit"], statistics=str(tmp_path))


@pytest.mark.slow
def test_in_a_run_the_winners_join_the_set(
    models: dict[str, str], reference: str, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\na blue square\n")
    folder = ran(
        tmp_path,
        prompt=None,
        prompts=str(tmp_path / "prompts.txt"),
        verifier_args={
            "name": NAMES["fid"], "model_name": models["vit"], "statistics": reference,
        },
        search_args={"search_method": "random", "search_rounds": 2},
    )  # fmt: skip
    verifier = built("fid", models["vit"], statistics=reference)
    rows = rows_of(folder)
    for prompt in (0, 1):
        mine = [row for row in rows if row["prompt_index"] == prompt]
        media = [Image.open(folder / row["path"]).convert("RGB") for row in mine]
        scores = [score.value for score in verifier.score([Item(image, "") for image in media])]
        assert [row["score"] for row in mine] == pytest.approx(scores, rel=1e-4)
        verifier.chose(Item(media[int(np.argmax(scores))], ""))


# Inception Score


def one_hot(index: int, k: int = 5) -> Tensor:
    return torch.eye(k, dtype=torch.float64)[index]


def test_inception_score_of_k_sure_classes_is_k_and_of_equal_images_1() -> None:
    sure, equal = ClassTally(), ClassTally()
    probs = torch.tensor([0.2, 0.3, 0.1, 0.4], dtype=torch.float64)
    for n in range(5):
        assert sure.score_with(one_hot(n)) == pytest.approx(n + 1)
        sure.add(one_hot(n))
        assert equal.score_with(probs) == pytest.approx(1)
        equal.add(probs)
    assert equal.score_with(probs) == pytest.approx(1)


def test_inception_score_is_the_mean_divergence_from_the_mean(models: dict[str, str]) -> None:
    verifier, images = built("inception_score", models["vit"]), pictures(5)
    first = [score.value for score in verifier.score([Item(image, "") for image in images])]
    assert first == [1.0] * 5  # exactly: rounding must not choose
    for image in images[:4]:
        verifier.chose(Item(image, ""))
    (score,) = verifier.score([Item(images[4], "")])
    logs = torch.stack(
        [s.log_probs for s in seen_of(models["vit"], images) if s.log_probs is not None]
    )
    p = logs.double().exp()
    divergences = (p * (p.log() - p.mean(0).log())).sum(1)
    assert score.value == pytest.approx(float(divergences.mean().exp()), rel=1e-5)
    assert score.value > 1 and score.details == {"chosen": 4}


def test_missing_scores_have_reasons_of_one_line(models: dict[str, str]) -> None:
    (image,) = pictures(1)
    (score,) = built("classifier", models["vit"]).score([Item(image, "no\nsuch class " * 50)])
    assert isinstance(score, Score) and "\n" not in score.explanation
