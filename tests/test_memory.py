"""Memory: what is foreseen agrees with what is loaded, and moving weights changes no image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

import pipelines.placement
from benchmarks import memory as benchmark
from benchmarks.full_size import PIPELINES
from experiment.config import parse_config
from experiment.guests import Guest
from experiment.runner import plan
from main import main
from pipelines.denoiser import Denoiser
from pipelines.live import peak_bytes
from pipelines.loading import load_pipeline
from pipelines.memory import GB, Needs, Part, Placement, Shape, Vae, needs_of, needs_of_folder
from pipelines.placement import Residence, settle
from pipelines.quantization import check_quantization, loading_arguments
from tests.families import FAMILIES
from tests.test_run import config, ran, results
from utils import UserError
from verifiers import make_verifier
from verifiers.base import BaseVerifier, Chosen, Item, Score
from verifiers.moving import models_within

FLUX = "shapes/models/shapes-flux"
SIZE = {"height": 128, "width": 128}
FluxPipeline: Any = diffusers.FluxPipeline


def full_size(name: str, folder: Path, quantization: str | None = None, batch: int = 1) -> Needs:
    """What a published pipeline needs, told from its configs alone."""
    pipeline = PIPELINES[name]
    pipeline.write(folder)
    build = getattr(diffusers, pipeline.name)
    call_args = pipeline.arguments(tiny=False)
    return needs_of_folder(str(folder), pipeline.dtype, quantization, build, call_args, batch)


def weights(needs: Needs) -> dict[str, int]:
    return {part.name: part.weights for part in needs.parts}


# What is foreseen


def test_the_headers_of_local_files_tell_the_loaded_weights(tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(FLUX, dtype=torch.float32)
    pipe.save_pretrained(tmp_path / "shards", max_shard_size="5MB")
    assert len(list((tmp_path / "shards/transformer").glob("*.safetensors"))) > 1
    for folder in (FLUX, str(tmp_path / "shards")):
        for dtype, size in (("fp32", 4), ("bf16", 2)):
            found = needs_of_folder(folder, dtype, None, FluxPipeline, SIZE, 1)
            assert weights(found) == {
                name: size * sum(p.numel() for p in model.parameters())
                for name, model in pipe.components.items()
                if isinstance(model, nn.Module)
            }


def test_without_weights_the_configs_tell_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "configs"
    shutil.copytree(FLUX, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    told = [needs_of_folder(f, "bf16", None, FluxPipeline, SIZE, 4) for f in (FLUX, str(folder))]
    assert told[0] == told[1]


def test_a_loaded_pipeline_is_told_as_its_files_are() -> None:
    files = needs_of_folder(FLUX, "bf16", None, FluxPipeline, SIZE, 4)
    pipe = DiffusionPipeline.from_pretrained(FLUX, dtype=torch.bfloat16)
    loaded = needs_of(pipe, SIZE, 4)
    assert replace(loaded, parts=files.parts) == files
    ours, theirs = weights(files), weights(loaded)
    assert ours.keys() == theirs.keys()
    for name, size in ours.items():
        assert 0 <= theirs[name] - size < 1000  # buffers that files leave out


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("flux.1-dev", {"transformer": 11.901, "text_encoder_2": 4.762, "text_encoder": 0.123}),
        ("pixart-sigma", {"transformer": 0.611}),
        ("sdxl", {"unet": 2.567, "text_encoder_2": 0.695}),
        ("sd1.5", {"unet": 0.860, "vae": 0.084}),
        ("flux.2-klein-4b", {"transformer": 3.876, "text_encoder": 4.022}),
    ],
)
def test_full_size_models_have_their_published_numbers_of_parameters(
    name: str, billions: dict[str, float], tmp_path: Path
) -> None:
    found = weights(full_size(name, tmp_path))
    for part, number in billions.items():
        assert found[part] / 2 / 1e9 == pytest.approx(number, abs=0.001)


def test_full_size_flux_is_foreseen(tmp_path: Path) -> None:
    needs = full_size("flux.1-dev", tmp_path, batch=8)
    assert needs.weights == pytest.approx(33.74e9, rel=1e-3)
    # The worst moment of the decoder: three tensors of 256 channels at full resolution.
    assert needs.decoding == pytest.approx(3 * 256 * 1024**2 * 2, rel=0.01)
    assert needs.decoded("plain") == 8 * needs.decoded("slicing")
    chosen = {gb: str(needs.choose("auto", "auto", gb * GB)) for gb in (24, 48, 80)}
    assert chosen == {24: "group", 48: "none, VAE slicing", 80: "none"}


@pytest.mark.parametrize("name", ["pixart", "sdxl"])
def test_decoding_is_foreseen_in_the_format_that_the_pipeline_decodes_in(name: str) -> None:
    """Both VAEs ask for fp32; PixArt's pipeline takes no notice."""
    family = FAMILIES[name]
    pipe = family.build()
    channels = pipe.vae.config.latent_channels
    pipe.vae.post_quant_conv = nn.Conv2d(channels, channels, 1)  # SDXL's pipeline counts on it
    pipe.vae.register_to_config(force_upcast=True, use_post_quant_conv=True)
    whole = needs_of(pipe, family.call_args, 2).decoding
    half = needs_of(pipe.to(torch.float16), family.call_args, 2).decoding
    seen = []

    def noted(_: Any, args: tuple[torch.Tensor, ...], __: Any) -> None:
        seen.append(args[0].dtype)

    pipe.vae.decoder.register_forward_hook(noted)
    denoiser = Denoiser(pipe, family.call_args)
    latents = denoiser.draw("a red circle", (0,)).latents
    denoiser._decoded("a red circle", latents, (0,), denoiser.steps("a red circle"))
    assert whole and half == (whole if seen[0] == torch.float32 else whole // 2)
    assert seen == [torch.float32 if name == "sdxl" else torch.float16]


def test_t5_keeps_its_wide_layers_in_fp32_beside_fp16(tmp_path: Path) -> None:
    found = weights(full_size("pixart-sigma", tmp_path))["text_encoder"]
    assert found == pytest.approx(2 * 4.762e9 + 2 * 24 * 4096 * 10240, rel=1e-3)


def test_the_bytes_alive_are_counted_and_no_others() -> None:
    def chain() -> torch.Tensor:
        one = torch.empty(1000, device="meta")
        two = one + 1
        del one
        three = two * 2
        view = three[:500]
        return two[:500] + view  # 500 more beside two thousand

    assert peak_bytes(chain) == 4 * 2500


def test_attention_is_counted_without_its_matrix() -> None:
    q = torch.empty(1, 2, 300, 8, device="meta")
    attend = torch.nn.functional.scaled_dot_product_attention
    assert peak_bytes(lambda: attend(q, q, q)) == q.numel() * 4
    assert peak_bytes(lambda: attend(query=q, key=q, value=q)) == q.numel() * 4


@pytest.mark.parametrize("short", ["wan", "ltx"])
def test_a_videos_decoding_is_told_from_few_of_its_frames(short: str) -> None:
    model = FAMILIES[short].build().vae
    vae = Vae.of(type(model), model.config, torch.float32)
    assert vae is not None
    latents = vae.latents(Shape(64, 64, 41, 1))
    assert latents[2] > 5 and vae.decoded(latents).shape[2:] == (41, 64, 64)
    whole = peak_bytes(lambda: vae.decoded(latents))
    assert vae.peak(latents) == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize("short", list(FAMILIES))
def test_every_family_can_be_told(short: str) -> None:
    family = FAMILIES[short]
    needs = needs_of(family.build(), family.call_args, 2)
    assert needs.weights > 0 and needs.denoising > 0 and needs.slices
    assert needs.decoding is not None and needs.decoding > 0


def test_guidance_doubles_the_rows() -> None:
    assert Shape.of({"guidance_scale": 5.0}, {}, 8).rows == 2
    assert Shape.of({"guidance_scale": 1.0}, {}, 8).rows == 1
    assert Shape.of({"guidance_scale": 3.5}, {"guidance_embeds": True}, 8).rows == 1
    true = {"guidance_scale": 1.0, "true_cfg_scale": 4.0}
    assert Shape.of(true, {}, 8).rows == 1
    assert Shape.of({**true, "negative_prompt": " "}, {}, 8).rows == 2
    assert Shape.of({}, {"sample_size": 64}, 8).height == 512


# What is chosen

PARTS = (
    Part("text_encoder", "text encoder", 100, 20),
    Part("transformer", "denoiser", 200, 10),
    Part("vae", "decoder", 10, 5),
)
NEEDS = Needs(PARTS, 4, 30, 50, 20, True, True)  # decoding 4 whole takes 200, one by one 50


def test_peaks_by_hand() -> None:
    assert NEEDS.peak(Placement()) == 310 + 200
    assert NEEDS.peak(Placement(vae="slicing")) == 310 + 50
    assert NEEDS.peak(Placement(vae="slicing", text_leaves=True)) == 310  # all, none of it active
    assert NEEDS.peak(Placement(text_leaves=True)) == 210 + 200
    assert NEEDS.peak(Placement("model", "slicing")) == 230  # the denoiser at work
    assert NEEDS.peak(Placement("model")) == 230
    assert NEEDS.peak(Placement("group", "slicing")) == 2 * 20 + 50
    assert NEEDS.peak(Placement("group", "tiling")) == 2 * 20 + 30


@pytest.mark.parametrize(
    ("free", "chosen"),
    [
        (570, Placement()),
        (400, Placement(vae="slicing")),
        (345, Placement(vae="slicing", text_leaves=True)),
        (300, Placement("model")),
        (120, Placement("group", "slicing")),
        (80, Placement("group", "tiling")),
        (10, Placement("group", "tiling")),  # nothing fits: the smallest
        (None, Placement()),
    ],
)
def test_the_fastest_that_fits_is_chosen(free: int | None, chosen: Placement) -> None:
    assert NEEDS.choose("auto", "auto", free) == chosen


def test_settings_are_kept() -> None:
    assert NEEDS.choose("none", "auto", 10).offload == "none"
    assert NEEDS.choose("model", "auto", 10**6) == Placement("model")
    assert NEEDS.choose("sequential", "plain", 10) == Placement("sequential")
    assert NEEDS.choose("auto", "tiling", 10**6) == Placement(vae="tiling")
    bare = replace(NEEDS, chained=False, slices=False, tiled=None)
    open_ones = set(bare.placements("auto", "auto"))
    assert {p.vae for p in open_ones} == {"plain"}
    assert {p.offload for p in open_ones} == {"none", "group"}


# What is done


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A function that makes "meta" a device with so many bytes free, and tells what was asked of
    the pipeline there."""

    def make(*free: int | None) -> Any:
        asked: list[tuple[str, dict[str, Any]]] = []
        told = iter(free)
        monkeypatch.setattr(pipelines.placement, "free_memory", lambda device: next(told))
        for name in ("model_cpu", "group", "sequential_cpu"):
            method = f"enable_{name}_offload"
            monkeypatch.setattr(
                DiffusionPipeline, method,
                lambda self, _method=method, **options: asked.append((_method, options)),
            )  # fmt: skip
        monkeypatch.setattr(
            DiffusionPipeline, "to", lambda self, device: asked.append(("to", {"device": device}))
        )
        return asked

    return make


META = torch.device("meta")


def test_what_fits_goes_there_whole(on_gpu: Any) -> None:
    asked = on_gpu(10**12)
    residence = settle(FAMILIES["flux"].build(), "meta", FAMILIES["flux"].call_args, 2)
    assert residence.placement == Placement()
    assert asked == [("to", {"device": META})]


def test_what_does_not_fit_is_offloaded_by_diffusers(on_gpu: Any) -> None:
    asked = on_gpu(1)
    pipe = FAMILIES["flux"].build()
    residence = settle(pipe, "meta", FAMILIES["flux"].call_args, 2)
    assert residence.placement.offload == "group"
    options = {"onload_device": META, "offload_type": "leaf_level", "use_stream": False}
    assert asked == [("enable_group_offload", options)]


@pytest.mark.parametrize("named", ["model", "sequential"])
def test_an_offload_that_is_named_is_used_though_all_fits(named: Any, on_gpu: Any) -> None:
    asked = on_gpu(10**12)
    settle(FAMILIES["flux"].build(), "meta", {}, 2, offload=named)
    assert asked == [(f"enable_{named}_cpu_offload", {"device": META})]


@pytest.mark.parametrize("named", ["auto", "none", "model", "group", "sequential"])
def test_on_the_cpu_nothing_is_offloaded(named: Any, on_gpu: Any) -> None:
    asked = on_gpu(None)
    pipe = FAMILIES["flux"].build()
    residence = settle(pipe, "cpu", {}, 2, offload=named, take_turns=True)
    assert residence.placement == Placement() and not residence.alone
    assert asked == [("to", {"device": torch.device("cpu")})]


def test_turns_are_taken_only_where_both_do_not_fit(on_gpu: Any) -> None:
    family = FAMILIES["flux"]
    left: list[str] = []

    def settled(*free: int) -> Residence:
        left.clear()
        on_gpu(*free)
        turns = {"take_turns": True, "others": [lambda: left.append("verifier")]}
        return settle(family.build(), "meta", family.call_args, 2, **turns)  # type: ignore[arg-type]

    both = settled(10**12)
    assert not both.alone and not left
    apart = settled(1, 10**12)  # once the verifier has left, all of the pipeline fits
    assert apart.alone and left == ["verifier"]
    assert apart.placement == Placement()
    small = settled(1, 1)
    assert small.alone and small.placement.offload == "group"


def test_gradients_need_everything_in_place(on_gpu: Any) -> None:
    on_gpu(1)
    family = FAMILIES["flux"]
    settled = settle(family.build(), "meta", {}, 2, gradient=True, take_turns=True)
    assert settled.placement.offload == "none" and not settled.alone
    with pytest.raises(UserError, match="'model' cannot serve a search that needs gradients"):
        settle(family.build(), "meta", {}, 2, offload="model", gradient=True)


def test_text_encoders_stay_behind_and_come_when_called() -> None:
    pipe = FAMILIES["flux"].build()
    Residence(pipe, "meta", Placement(text_leaves=True))
    models: dict[str, Any] = {n: m for n, m in pipe.components.items() if isinstance(m, nn.Module)}
    where = {name: model.device.type for name, model in models.items()}
    assert where == {
        "transformer": "meta", "vae": "meta", "text_encoder": "cpu", "text_encoder_2": "cpu",
    }  # fmt: skip
    pipe.text_encoder(torch.zeros(1, 4, dtype=torch.long))
    assert pipe.text_encoder.device == META


WAYS = [
    Placement(text_leaves=True),
    Placement("model"),
    Placement("group"),
    Placement("none", "slicing"),
]


@pytest.mark.parametrize("placement", WAYS, ids=str)
@pytest.mark.parametrize("short", ["sd15", "flux", "wan"])
def test_a_placement_changes_no_image(short: str, placement: Placement) -> None:
    """Through the denoiser: cut in two, with text encoders that run once."""
    family = FAMILIES[short]

    def made(placement: Placement) -> np.ndarray:
        pipe = family.build()
        denoiser = Denoiser(pipe, family.call_args, Residence(pipe, "cpu", placement))
        prompt, seeds = "a red circle", [0, 1]
        drawn = denoiser.draw(prompt, seeds)
        steps = denoiser.steps(prompt, 2)
        half = denoiser.denoise(prompt, drawn.latents, seeds, 0, 2).latents
        done = denoiser.denoise(prompt, half, seeds, 2, steps).latents
        return np.asarray([np.asarray(media) for media in denoiser.decode(
            prompt, done, seeds, steps).media], dtype=int)  # fmt: skip

    apart = np.abs(made(placement) - made(Placement())).max()
    assert apart <= (1 if placement.vae == "slicing" else 0)  # of 255: other sizes, other rounding


def test_a_vae_decodes_as_asked() -> None:
    pipe = FAMILIES["flux"].build()
    Residence(pipe, "cpu", Placement(vae="slicing"))
    assert pipe.vae.use_slicing and not pipe.vae.use_tiling
    Residence(pipe, "cpu", Placement(vae="tiling"))
    assert pipe.vae.use_slicing and pipe.vae.use_tiling
    del pipe.vae.use_tiling
    with pytest.raises(UserError, match=r"AutoencoderKL has no tiling: set engine_args\.vae"):
        Residence(pipe, "cpu", Placement(vae="tiling"))


def test_an_offload_that_a_pipeline_cannot_do_is_one_sentence() -> None:
    pipe = FAMILIES["flux"].build()
    pipe.model_cpu_offload_seq = None
    with pytest.raises(UserError, match=r"'model' does not work here: .*offload_seq") as e:
        Residence(pipe, "cpu", Placement("model"))
    assert "\n" not in str(e.value)


# Turns in a run


class Events:
    """What happened, in its order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        self._spy(monkeypatch, Residence, "leave", "pipeline leaves")
        self._spy(monkeypatch, Chosen, "score", "scores")
        self._spy(monkeypatch, Chosen, "offload", "verifier leaves")
        self._spy(monkeypatch, Denoiser, "decode", "decodes")

    def _spy(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, said: str) -> None:
        real = getattr(owner, name)

        def spied(this: Any, *args: Any, **kwargs: Any) -> Any:
            self.seen.append(said)
            return real(this, *args, **kwargs)

        monkeypatch.setattr(owner, name, spied)


SHORT = {"search_method": "random", "search_rounds": 2}


def alone(pipe: Any, device: str, *_: Any, **__: Any) -> Residence:
    return Residence(pipe, device, Placement(), alone=True)


def test_low_memory_moves_once_a_phase_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"search_args": SHORT, "engine_args": {"batch_size": 2}}
    usual = ran(tmp_path / "usual", **small)
    monkeypatch.setattr("experiment.runner.settle", alone)
    events = Events(monkeypatch)
    apart = ran(tmp_path / "apart", **small, use_low_gpu_vram=True)
    assert results(apart) == results(usual)
    first = ["decodes", "pipeline leaves", "scores", "verifier leaves"]
    second = ["decodes"] * 2 + ["pipeline leaves"] + ["scores"] * 2 + ["verifier leaves"]
    assert events.seen == [*first, *second, "pipeline leaves", "verifier leaves"]  # the end: chose


def test_otherwise_each_batch_is_scored_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Events(monkeypatch)
    ran(tmp_path, search_args=SHORT, engine_args={"batch_size": 2}, use_low_gpu_vram=True)
    assert events.seen == ["decodes", "scores"] * 3  # on a CPU there is nothing to move


def test_judges_take_turns_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiment.runner.settle", alone)
    events = Events(monkeypatch)
    once = {"search_method": "random", "search_rounds": 1}
    ran(tmp_path, search_args=once, judges=[{"name": "shapes_oracle"}])
    turn = ["pipeline leaves", "scores", "verifier leaves"]
    chose = ["pipeline leaves", "verifier leaves"]
    assert events.seen == ["decodes", *turn, *turn, *chose, *chose]


def test_the_pipeline_comes_back_before_it_runs() -> None:
    family = FAMILIES["flux"]
    pipe = family.build()
    residence = Residence(pipe, "cpu", Placement(), alone=True)
    denoiser = Denoiser(pipe, family.call_args, residence)
    moved: list[str] = []
    for name in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        model = getattr(pipe, name)
        model.to = lambda device, name=name: moved.append(f"{name} {device}")
    residence._device = META
    everything = {"transformer", "text_encoder", "text_encoder_2", "vae"}
    residence.leave()
    residence.leave()
    assert sorted(moved) == sorted(f"{name} cpu" for name in everything)
    moved.clear()
    denoiser.draw("a red circle", [0])
    denoiser.draw("a red circle", [1])
    assert sorted(moved) == sorted(f"{name} meta" for name in everything)


def test_the_pipeline_runs_with_its_own_gpu_as_the_current_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a thread of its own, which CUDA starts on the first GPU: offloading by groups waits for
    the current device's stream, and for no other, before it frees a layer."""
    family = FAMILIES["flux"]
    pipe = family.build()
    residence = Residence(pipe, "cpu", Placement())
    residence._device = torch.device("cuda:1")
    inside: list[int] = []
    seen: list[int] = []

    @contextmanager
    def current(device: torch.device) -> Iterator[None]:
        inside.append(device.index)
        yield
        inside.pop()

    monkeypatch.setattr(torch.cuda, "device", current)
    denoiser = Denoiser(pipe, family.call_args, residence)
    for model in (pipe.text_encoder, pipe.transformer, pipe.vae.decoder):
        model.register_forward_hook(lambda *_: seen.extend(inside))

    def work() -> None:
        drawn = denoiser.draw("a red circle", [0])
        done = denoiser.denoise("a red circle", drawn.latents, [0], 0, 2)
        denoiser.decode("a red circle", done.clean, [0], denoiser.steps("a red circle"))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
    assert seen == [1] * 4 and not inside  # encoded once, two steps, decoded


class Elsewhere(nn.Linear):
    """A layer whose weights are on no CPU, and that notes where it is sent."""

    def __init__(self) -> None:
        super().__init__(2, 2, device="meta")
        self.sent: list[str] = []

    def to(self, device: Any) -> Any:  # type: ignore[override]
        self.sent.append(str(device))
        return self


class Judge(BaseVerifier):
    """Holds its model in a record, as the bundled ones do."""

    metrics: ClassVar[tuple[str, ...]] = ("one",)

    def __init__(self) -> None:
        self.model = Elsewhere()
        self.held = {"clip": SimpleNamespace(model=self.model)}
        self.sent_before_scoring: list[str] = []

    def score(self, items: Any) -> list[Score]:
        self.sent_before_scoring = list(self.model.sent)
        return [Score.of(one=1.0) for _ in items]


def test_a_verifier_that_does_not_move_itself_is_moved() -> None:
    judge = Judge()
    residence = SimpleNamespace(leave=lambda: None)
    guest = Guest(judge, "judge", "one", residence)  # type: ignore[arg-type]
    guest.score([Item(None, "")])
    assert judge.model.sent == ["cpu"]
    guest.score([Item(None, "")])
    assert judge.sent_before_scoring == ["cpu", "meta"]
    assert judge.model.sent == ["cpu", "meta", "cpu"]
    Chosen(judge, "judge", "one").chose(Item(None, ""))  # knows nothing of the other's moves
    assert judge.model.sent == ["cpu", "meta", "cpu"]


@pytest.mark.parametrize("name", ["clip", "pickscore", "self_similarity"])
def test_the_bundled_verifiers_models_are_found(name: str) -> None:
    chosen = make_verifier(name, None, {"model_name": "shapes/models/shapes-clip"})
    chosen.load("cpu")
    (model,) = {id(m): m for m in models_within(chosen.verifier)}.values()
    assert sum(p.numel() for p in model.parameters()) > 10**5


# Quantised weights


@pytest.mark.parametrize(("name", "package"), [("int8", "torchao"), ("4bit", "bitsandbytes")])
def test_a_missing_package_is_named(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"'{name}' needs {package}: pip install {package}"):
        check_quantization(name, "bf16", "cuda")


def test_what_cannot_be_quantised_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object())
    with pytest.raises(UserError, match="'4bit' needs a GPU"):
        check_quantization("4bit", "bf16", "cpu")
    with pytest.raises(UserError, match="'int8' needs bf16"):
        check_quantization("int8", "fp16", "cuda")
    for fine in (None, "fp8"):
        check_quantization(fine, "fp16", "cpu")


def test_a_run_refuses_before_weights_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", None)  # would fail if it were called
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config(engine_args={"quantization": "4bit"})))
    assert main([f"--pipeline_config_path={path}", f"--output_dir={tmp_path}/out"]) == 2
    err = capsys.readouterr().err
    assert "engine_args.quantization '4bit' needs" in err and err.count("\n") == 1


def test_four_bits_are_handed_to_the_denoiser_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The config is diffusers' own; it asks for bitsandbytes' version, and for no more."""
    monkeypatch.setattr(
        "diffusers.quantizers.quantization_config.importlib.metadata.version", lambda _: "0.50.2"
    )
    handed: dict[str, Any] = {}

    def note(checkpoint: str, **options: Any) -> Any:
        handed.update(options)
        raise OSError("seen enough")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", note)
    with pytest.raises(UserError, match="seen enough"):
        load_pipeline(FLUX, "bf16", None, quantization="4bit")
    mapping = handed["quantization_config"].quant_mapping
    assert set(mapping) == {"transformer"}
    made = mapping["transformer"]
    assert made.load_in_4bit and made.bnb_4bit_quant_type == "nf4"
    assert made.bnb_4bit_compute_dtype == torch.bfloat16 == handed["dtype"]


ARGS = {**SIZE, "num_inference_steps": 4, "max_sequence_length": 32}


def picture(pipe: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    images = pipe("a red circle", generator=generator, output_type="np", **ARGS).images
    return np.asarray(images[0])


@pytest.mark.slow
def test_fp8_halves_the_denoiser_and_hardly_moves_the_picture() -> None:
    plain = load_pipeline(FLUX, "bf16", None)
    stored = load_pipeline(FLUX, "bf16", None, quantization="fp8")
    foreseen = needs_of_folder(FLUX, "bf16", "fp8", FluxPipeline, ARGS, 1)
    sizes, before = weights(needs_of(stored, ARGS, 1)), weights(needs_of(plain, ARGS, 1))
    assert sizes["transformer"] == weights(foreseen)["transformer"]
    assert 0.5 < sizes["transformer"] / before["transformer"] < 0.7  # modulations stay in bf16
    assert sizes["vae"] == before["vae"]
    moved = np.abs(picture(stored) - picture(plain)).mean()
    assert 0 < moved < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("placement", [Placement("model"), Placement("group")], ids=str)
def test_fp8_goes_with_offloading(placement: Placement) -> None:
    pipes = [load_pipeline(FLUX, "bf16", None, quantization="fp8") for _ in range(2)]
    Residence(pipes[1], "cpu", placement)
    np.testing.assert_array_equal(picture(pipes[1]), picture(pipes[0]))


def test_int8_runs_where_torchao_is_installed() -> None:
    pytest.importorskip("torchao")
    (made,) = loading_arguments("int8", ["transformer"], torch.bfloat16).values()
    assert type(made.quant_mapping["transformer"].quant_type).__name__ == "Int8WeightOnlyConfig"
    pipe = load_pipeline(FLUX, "bf16", None, quantization="int8")
    foreseen = needs_of_folder(FLUX, "bf16", "int8", FluxPipeline, ARGS, 1)
    found = weights(needs_of(pipe, ARGS, 1))["transformer"]
    assert found == pytest.approx(weights(foreseen)["transformer"], rel=0.03)  # and the scales
    moved = np.abs(picture(pipe) - picture(load_pipeline(FLUX, "bf16", None))).mean()
    assert 0 < moved < 0.01


# What users see


def test_a_dry_run_tells_memory_and_placement(tmp_path: Path) -> None:
    PIPELINES["flux.1-dev"].write(tmp_path)
    call_args = {"height": 1024, "width": 1024, "num_inference_steps": 50}
    content = config(pretrained_model_name_or_path=str(tmp_path), torch_dtype="bf16")
    printed = str(plan(parse_config({**content, "pipeline_call_args": call_args})))
    lines = {line[:14].strip(): line[14:] for line in printed.splitlines()}
    assert lines["weights"] == (
        "33.7 GB: transformer 23.8, text_encoder_2 9.5, text_encoder 0.2, vae 0.2"
    )
    assert lines["activations"].endswith("(an estimate), 12.9 GB to decode them")
    assert lines["placement"] == (
        "24 GB: group; 48 GB: none, VAE slicing; 80 GB: none; 141 GB: none"
    )
    named = {**content, "pipeline_call_args": call_args, "engine_args": {"offload": "none"}}
    told = str(plan(parse_config(named)))
    assert (
        "placement     24 GB: none, text encoders leave, VAE slicing (may not fit); 48 GB: none"
        in told
    )


def test_a_small_checkpoint_needs_no_more_words() -> None:
    told = str(plan(parse_config(config())))
    assert "memory        0.02 GB of weights on disk, small enough for any GPU" in told


def test_a_dry_run_of_a_hub_name_says_what_it_cannot_know() -> None:
    content = config(pretrained_model_name_or_path="owner/absent")
    assert "memory        unknown until the checkpoint's files are here" in str(
        plan(parse_config(content))
    )


def test_a_run_records_where_its_weights_were(tmp_path: Path) -> None:
    folder = ran(tmp_path, search_args={"search_method": "random", "search_rounds": 1})
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["placement"] == {
        "offload": "none", "text_encoders_leave": False, "vae": "plain", "takes_turns": False,
    }  # fmt: skip
    saved = json.loads((folder / "config.json").read_text())["engine_args"]
    assert (saved["vae"], saved["offload"]) == ("plain", "auto")


@pytest.mark.slow
def test_a_run_with_everything_set(tmp_path: Path) -> None:
    engine = {"quantization": "fp8", "vae": "tiling", "offload": "model"}
    folder = ran(
        tmp_path, torch_dtype="bf16", engine_args=engine,
        search_args={"search_method": "random", "search_rounds": 1},
    )  # fmt: skip
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["placement"]["vae"], manifest["placement"]["offload"]) == ("tiling", "none")


@pytest.mark.slow
def test_the_memory_benchmark_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--tiny", "--device=cpu", "--steps=2", "--batch_size=1", f"--output_dir={tmp_path}"]
    chosen = ["--pipelines", "sdxl", "wan2.1-1.3b", "--placements", "none", "group"]
    assert benchmark.main([*argv, *chosen]) == 0
    for name in ("sdxl", "wan2.1-1.3b"):
        found = json.loads((tmp_path / f"memory_{name}.json").read_text())
        assert found["tiny"] and [run["placement"] for run in found["runs"]] == [
            "none", "group, VAE slicing",
        ]  # fmt: skip
        for run in found["runs"]:
            assert len(run["seconds_per_image"]) == 2 and min(run["seconds_per_image"]) > 0
            assert run["peak_gb"] is None  # torch counts on accelerators alone
            assert run["expected_peak_gb"] > 0
    assert capsys.readouterr().out.count("s an image") == 4
    assert benchmark.main(["--pipelines", "sdlx"]) == 2
    assert "did you mean 'sdxl'" in capsys.readouterr().err


def test_every_full_size_pipeline_has_a_small_build() -> None:
    for pipeline in PIPELINES.values():
        pipe = pipeline.make(True, "cpu")
        assert sum(p.numel() for p in pipe.vae.parameters()) < 10**6
        assert all(p.device.type == "cpu" for p in pipe.vae.parameters())
