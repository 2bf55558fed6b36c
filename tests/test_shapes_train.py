"""The recipe: it builds the bundled networks, their losses are low under it, and it runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shapes import architectures as build
from shapes.build_tokenizers import CLIP_LENGTH, T5_LENGTH, build_clip_tokenizer, build_t5_tokenizer
from shapes.dataset import Examples, draw_images, draw_scenes, make_examples
from shapes.fitting import Course, Workshop, fit, learning_rate
from shapes.objectives import clip_loss, clip_pixels, flux_loss, sd_loss, vae_loss
from shapes.train import main

MODELS = Path("shapes/models")
COUNT = 24


@pytest.mark.parametrize(
    ("made", "file"),
    [
        (lambda: build.build_vae(build.BUNDLED), "shapes-flux/vae/config.json"),
        (lambda: build.build_transformer(build.BUNDLED), "shapes-flux/transformer/config.json"),
        (build.build_flow_matching, "shapes-flux/scheduler/scheduler_config.json"),
        (lambda: build.build_unet(build.BUNDLED), "shapes-sd/unet/config.json"),
        (build.build_ddim, "shapes-sd/scheduler/scheduler_config.json"),
    ],
)
def test_diffusers_configs_are_the_bundled_ones(made: Callable[..., Any], file: str) -> None:
    bundled = json.loads((MODELS / file).read_text())
    bundled.pop("scaling_factor", None)  # measured when the autoencoder is trained
    # As JSON, where tuples are lists.
    config = json.loads(json.dumps({**made().config}))
    assert {key: config.get(key) for key in bundled if key[0] != "_"} == {
        key: value for key, value in bundled.items() if key[0] != "_"
    }


@pytest.mark.parametrize(
    ("made", "folder"),
    [
        (build.build_text_encoder, "shapes-flux/text_encoder"),
        (build.build_text_encoder, "shapes-sd/text_encoder"),
        (build.build_t5, "shapes-flux/text_encoder_2"),
        (build.build_clip, "shapes-clip"),
    ],
)
def test_transformers_configs_are_the_bundled_ones(made: Callable[..., Any], folder: str) -> None:
    def plain(config: dict[str, Any]) -> dict[str, Any]:
        """Without what the libraries add when they save."""
        ignored = {"dtype", "architectures", "transformers_version"}
        return {
            key: plain(value) if isinstance(value, dict) else value
            for key, value in config.items()
            if key not in ignored
        }

    bundled = plain(json.loads((MODELS / folder / "config.json").read_text()))
    config = plain(made(build.BUNDLED).config.to_dict())
    for key, value in bundled.items():
        parts = value.items() if isinstance(value, dict) else [(None, value)]
        for part, expected in parts:
            assert (config[key] if part is None else config[key][part]) == expected, (key, part)


def test_tokenizers_have_the_bundled_vocabularies() -> None:
    for made, folder in ((build_clip_tokenizer, "tokenizer"), (build_t5_tokenizer, "tokenizer_2")):
        file = MODELS / "shapes-flux" / folder / "tokenizer.json"
        bundled = json.loads(file.read_text())["model"]["vocab"]
        assert len(made()) == len(bundled)
    assert build_clip_tokenizer().get_vocab() == build_clip_tokenizer().get_vocab()


def test_a_word_is_a_token_and_captions_fit() -> None:
    clip, t5 = build_clip_tokenizer(), build_t5_tokenizer()
    caption = "two small red circles, an orange triangle and a blue ring on a black background"
    assert len(clip(caption).input_ids) == 16 + 2
    assert len(t5(caption).input_ids) == 16 + 1
    longest = max(draw_scenes(500).captions, key=len)
    assert len(clip(longest).input_ids) <= CLIP_LENGTH
    assert len(t5(longest).input_ids) <= T5_LENGTH
    # Any text has tokens.
    assert clip.decode(clip("Zebra!").input_ids, skip_special_tokens=True).replace(" ", "")


@pytest.fixture(scope="module")
def shop() -> Workshop:
    """A workshop in the folder of the bundled FLUX pipeline, whose parts lie as a stage's do."""
    folder = Path(__file__).parents[1] / MODELS / "shapes-flux"
    return Workshop(folder, torch.device("cpu"), torch.Generator().manual_seed(0), compiled=False)


@pytest.fixture(scope="module")
def examples(shop: Workshop) -> Examples:
    return make_examples(draw_scenes(COUNT), shop, at_once=4)


def test_latents_have_unit_scale(examples: Examples) -> None:
    assert examples.latents.float().std() == pytest.approx(1, abs=0.1)
    assert len(examples) == COUNT


@torch.no_grad()
def test_the_bundled_autoencoder_has_a_low_loss(shop: Workshop, examples: Examples) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(MODELS / "shapes-flux/vae", torch_dtype=torch.float32)
    images = draw_images(examples.batch[:4], shop)
    noise = shop.normal(4, 4, 16, 16)
    assert vae_loss(vae, images, noise) < 0.05 < vae_loss(vae, images, 20 * noise)


@torch.no_grad()
def test_the_bundled_verifier_has_a_low_loss(shop: Workshop, examples: Examples) -> None:
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(MODELS / "shapes-clip", dtype=torch.float32).eval()
    pixels = clip_pixels(draw_images(examples.batch, shop))
    captions, negatives = examples.clip.long(), examples.negatives.long()
    mistaken = clip_loss(model, pixels, captions.roll(1, 0), negatives)
    assert clip_loss(model, pixels, captions, negatives) < 1 < mistaken


@torch.no_grad()
def test_the_bundled_unet_has_a_low_loss_with_the_right_captions(
    shop: Workshop, examples: Examples
) -> None:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel

    folder = MODELS / "shapes-sd/unet"
    unet = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32)
    text = CLIPTextModel.from_pretrained(MODELS / "shapes-sd/text_encoder", dtype=torch.float32)
    signal = build.build_ddim().alphas_cumprod
    latents, tokens = examples.latents.float(), examples.clip.long()
    # Late steps, where nearly all comes from the caption, and the same noise for both.
    step, noise = shop.integers(300, COUNT) + 500, shop.normal(*latents.shape)
    right = sd_loss(unet, text, signal, latents, tokens, step, noise)
    wrong = sd_loss(unet, text, signal, latents, tokens.roll(1, 0), step, noise)
    assert right < wrong
    assert right < 0.3  # 1 for a network that says nothing


@torch.no_grad()
def test_the_bundled_transformer_has_a_low_loss_with_the_right_captions(
    shop: Workshop, examples: Examples
) -> None:
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextModel, T5EncoderModel

    folder = MODELS / "shapes-flux/transformer"
    transformer = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
    clip, t5 = (
        kind.from_pretrained(MODELS / "shapes-flux" / name, dtype=torch.float32)
        for kind, name in ((CLIPTextModel, "text_encoder"), (T5EncoderModel, "text_encoder_2"))
    )
    tokens = (examples.clip.long(), examples.t5.long())
    latents = examples.latents.float()
    sigma, noise = 0.6 + 0.3 * shop.uniform(COUNT), shop.normal(*latents.shape)
    right = flux_loss(transformer, (clip, t5), latents, tokens, sigma, noise)
    other = (tokens[0].roll(1, 0), tokens[1].roll(1, 0))
    wrong = flux_loss(transformer, (clip, t5), latents, other, sigma, noise)
    assert right < wrong
    assert right < 0.6  # 2 for a network that says nothing


def test_fitting_learns_averages_and_goes_on_where_it_stopped(
    tmp_path: Path, shop: Workshop
) -> None:
    bench = Workshop(tmp_path, shop.device, torch.Generator().manual_seed(0), compiled=False)
    torch.manual_seed(0)
    line = torch.nn.Linear(2, 1)

    def loss() -> torch.Tensor:
        x = bench.normal(64, 2)
        return (line(x)[:, 0] - x.sum(1)).pow(2).mean()

    before = loss().item()
    course = Course("line", seconds=0.3, rate=0.1, weight_decay=0)
    fit(course, [line], loss, bench)
    assert loss().item() < 0.1 * before
    first = torch.load(tmp_path / "line.ckpt")["step"]
    fit(course, [line], loss, bench)
    assert torch.load(tmp_path / "line.ckpt")["step"] > first


def test_the_learning_rate_warms_up_holds_and_anneals() -> None:
    course = Course("any", 1.0, rate=2.0)
    assert learning_rate(course, 0, 0.0) == pytest.approx(2 / 500)
    assert learning_rate(course, 500, 0.5) == pytest.approx(2)
    assert learning_rate(course, 500, 1.0) == pytest.approx(0.1)


def test_a_stage_without_its_input_names_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["clip", "--out", str(tmp_path), "--smoke"])
    assert "run the stage 'data' first" in capsys.readouterr().err


@pytest.mark.slow
def test_a_smoke_run_makes_checkpoints_that_load_and_run(tmp_path: Path) -> None:
    from diffusers import FluxPipeline, StableDiffusionPipeline
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    main(["all", "--out", str(tmp_path), "--smoke"])
    common = {"height": 128, "width": 128, "num_inference_steps": 2, "output_type": "pil"}
    flux = FluxPipeline.from_pretrained(tmp_path / "shapes-flux", torch_dtype=torch.float32)
    images = flux("a red circle", max_sequence_length=32, **common).images
    sd = StableDiffusionPipeline.from_pretrained(tmp_path / "shapes-sd", torch_dtype=torch.float32)
    images += sd("a red circle", guidance_scale=3.0, **common).images
    assert all(isinstance(i, Image.Image) and i.size == (128, 128) for i in images)
    clip = CLIPModel.from_pretrained(tmp_path / "shapes-clip", dtype=torch.float32)
    processor = CLIPProcessor.from_pretrained(tmp_path / "shapes-clip")
    inputs = processor(text=["a red circle"], images=images, return_tensors="pt", padding=True)
    with torch.no_grad():
        assert clip(**inputs).logits_per_image.shape == (2, 1)
    for folder in ("shapes-flux", "shapes-sd"):
        made = json.loads((tmp_path / folder / "model_index.json").read_text())
        assert made == json.loads((MODELS / folder / "model_index.json").read_text())
        assert str(tmp_path) not in (tmp_path / folder / "vae/config.json").read_text()
