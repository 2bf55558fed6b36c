"""Profiles: drafts made cheaper, winners rendered exactly, and every row says which it is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import profiles
from benchmarks.profiles import agreement
from experiment.config import parse_config
from experiment.records import read_candidates
from experiment.runner import load, plan
from experiment.speed import speed
from pipelines.denoiser import Denoiser
from pipelines.loading import load_pipeline
from pipelines.memory import HEADROOM, Placement, needs_of
from pipelines.parts import denoisers, named_denoisers
from pipelines.placement import Residence, settle
from pipelines.profiles import check_profile, copies_needed
from tests.test_run import config, ran, rows_of
from utils import UserError

FLUX = "shapes/models/shapes-flux"
CALL = {"num_inference_steps": 8, "height": 64, "width": 64, "max_sequence_length": 16}
PROMPT = "a red circle"
SEEDS = (3, 4, 5)
LOOSE = 0.5  # so that some of these few steps are skipped


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser(load_pipeline(FLUX, "fp32", "cpu"), CALL)


@pytest.fixture(params=["cached", "fp8"])
def drafting(request: pytest.FixtureRequest, denoiser: Denoiser) -> Iterator[Denoiser]:
    denoiser.use_profile(request.param, threshold=LOOSE)
    yield denoiser
    denoiser.use_profile("exact")


def denoised(denoiser: Denoiser, seeds: tuple[int, ...], *, draft: bool) -> torch.Tensor:
    drawn = denoiser.draw(PROMPT, seeds)
    with denoiser.drafting(8 if draft else None):
        return denoiser.denoise(PROMPT, drawn.latents, seeds, 0, 8).latents


def test_a_profile_changes_drafts_and_nothing_else(drafting: Denoiser) -> None:
    exact = denoised(drafting, SEEDS, draft=False)
    before = drafting.rows
    draft = denoised(drafting, SEEDS, draft=True)
    assert drafting.rows - before == 8 * len(SEEDS)
    apart = float((draft - exact).abs().mean() / exact.abs().mean())
    assert 1e-3 < apart < 0.5  # more than rounding, and still the same picture
    assert torch.equal(denoised(drafting, SEEDS, draft=False), exact)


def test_a_cached_draft_depends_on_nobody(denoiser: Denoiser) -> None:
    """Neither on those it is in a batch with, nor on a call that was left early."""
    denoiser.use_profile("cached", threshold=LOOSE)
    try:
        alone = denoised(denoiser, SEEDS[1:2], draft=True)
        assert torch.equal(denoised(denoiser, SEEDS, draft=True)[1:2], alone)
        with pytest.raises(KeyboardInterrupt), _interrupted(denoiser, after=3):
            denoised(denoiser, SEEDS[:1], draft=True)
        assert torch.equal(denoised(denoiser, SEEDS[1:2], draft=True), alone)
    finally:
        denoiser.use_profile("exact")


class _interrupted:
    """Passes through the denoiser end after some."""

    def __init__(self, denoiser: Denoiser, after: int) -> None:
        self._left = after
        self._handle = denoisers(denoiser.pipe)[0].register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


@pytest.mark.slow
def test_a_search_explores_by_its_profile_and_renders_the_best_exactly(tmp_path: Path) -> None:
    small = {"search_method": "random", "search_rounds": 2}
    call = {"num_inference_steps": 4, "height": 32, "width": 32}
    engine = {"profile": "cached", "batch_size": 2}
    folder = ran(tmp_path, search_args=small, pipeline_call_args=call, engine_args=engine)
    rows = rows_of(folder)
    assert [(row["draft"], row["profile"], row["steps"]) for row in rows] == (
        [(True, "cached", 4)] * 6 + [(False, "exact", 4)] * 4
    )
    saved = json.loads((folder / "config.json").read_text())
    assert saved["engine_args"]["profile"] == "cached"
    assert saved["search_args"]["inner"] == small
    assert parse_config(saved).resolved()["search_args"] == saved["search_args"]

    seeds = [row["seed"] for row in rows[6:8]]
    pipe = load_pipeline(FLUX, "fp32", "cpu")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    plain = pipe([rows[0]["prompt"]] * 2, generator=generators, **call).images
    for row, image in zip(rows[6:8], plain, strict=True):
        assert np.array_equal(np.asarray(Image.open(folder / row["path"])), np.asarray(image))
    assert [row.profile for row in read_candidates(folder)][-1] == "exact"


def test_rows_of_earlier_versions_are_exact(tmp_path: Path) -> None:
    row = {"id": 0, "prompt": "a", "prompt_index": 0, "round": 1, "step": 1, "steps": 1, "seed": 1,
           "status": "ok", "score": 1.0}  # fmt: skip
    (tmp_path / "candidates.jsonl").write_text(json.dumps(row) + "\n")
    (read,) = read_candidates(tmp_path)
    assert (read.profile, read.draft) == ("exact", False)


def test_rounds_are_the_inner_searchs_and_a_pass_is_one() -> None:
    made = parse_config(config(search_args={}, engine_args={"profile": "draft"}))
    assert made.search_args.search_method == "draft" and made.rounds == 1
    assert made.search_args.build().inner["search_rounds"] == 4
    assert made.search_args.build().share == 0.5
    own = {"search_method": "draft", "inner": {"search_method": "ses"}, "keep": 2}
    made = parse_config(config(search_args=own, engine_args={"profile": "fp8"}))
    assert made.search_args.options == {"share": 1.0, "keep": 2, "inner": {"search_method": "ses"}}
    bounded = config(budget={"nfe": 20}, search_args={}, engine_args={"profile": "cached"})
    assert parse_config(bounded).rounds is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine_args": {"profile": "fp8", "quantization": "fp8"}}, "keep one of them"),
        ({"engine_args": {"profile": "fast"}}, "engine_args.profile"),
        ({"search_args": {"search_method": "draft", "share": 1}}, "no cheaper than images"),
        ({"search_args": {"search_method": "paths"}, "engine_args": {"profile": "draft"}},
         "more than choose an initial noise"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_config(config(**changes))


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"profile": "cached"}, "UNet2DConditionModel has no first-block cache that works"),
        ({"profile": "fp8", "offload": "group"}, "needs the denoiser in place"),
    ],
)
def test_what_a_model_cannot_do_is_refused_before_weights_load(
    engine: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiment.runner.load_pipeline", lambda *_, **__: pytest.fail("loaded"))
    content = json.loads(Path("configs/shapes_sd.json").read_text())
    made = parse_config({**content, "engine_args": {**engine, "device": "cpu"}})
    with pytest.raises(UserError, match=said):
        load(made, plan(made))


def test_agreement_is_one_for_equal_scores_and_falls_with_disorder() -> None:
    exact = np.array([[0.0, 1.0, 2.0, 5.0], [3.0, 1.0, 2.0, 0.0]])
    same = agreement(exact, 10 * exact + 1)
    assert same["rank"] == [1.0, 1.0, 1.0] and same["kept"] == [1.0, 1.0, 1.0]
    turned = agreement(exact, -exact)
    assert turned["rank"][0] == -1.0
    # Means 2 and 1.5: the drafts choose 0 and 0, and the gains are 3 and 1.5.
    assert turned["kept"][0] == pytest.approx((-2 - 1.5) / (3 + 1.5))
    second = np.array([[0.0, 1.0, 5.0, 2.0], [3.0, 1.0, 2.0, 0.0]])
    assert agreement(exact, second)["kept"][0] == pytest.approx((0 + 1.5) / (3 + 1.5))


@pytest.mark.slow
def test_the_profiles_benchmark_compares_drafts_with_exact_images(tmp_path: Path) -> None:
    path = tmp_path / "profiles.json"
    words = ["--num_prompts", "2", "--noises", "3", "--steps", "4", "--json", str(path)]
    assert profiles.main([*words, "--threshold", "0.5"]) == 0
    found = json.loads(path.read_text())["profiles"]
    assert found["draft"]["steps"] == 2 and found["draft"]["work"] == pytest.approx(0.5, abs=0.01)
    assert found["cached"]["steps"] == 4 and found["cached"]["work"] < 1
    assert found["fp8"]["work"] == pytest.approx(1.0)


def test_a_copy_of_a_compiled_denoiser_is_its_own() -> None:
    made = Denoiser(load_pipeline("shapes/models/shapes-sd", "fp32", "cpu"), {})
    (unet,) = denoisers(made.pipe)
    unet.forward = torch.compile(unet.forward, backend="eager")
    made.use_profile("fp8")
    assert made.twins == ()  # whose layers have hooks, without torchao
    assert made._cheap is not None
    with made._cheap.on():
        (twin,) = denoisers(made.pipe)
    assert twin is not unet and twin.forward.__self__ is twin


def test_an_fp8_copy_shares_what_it_keeps_and_takes_what_was_foreseen() -> None:
    pipe = load_pipeline(FLUX, "bf16", "cpu")
    made = Denoiser(pipe, CALL, settle(pipe, "cpu", CALL, 2))
    parts = named_denoisers(pipe)
    (foreseen,) = copies_needed("fp8", parts, "cpu")
    assert copies_needed("draft", parts, "cpu") == ()
    before = {name: weight.clone() for name, weight in parts["transformer"].named_parameters()}
    made.use_profile("fp8")
    own = {weight.data_ptr() for weight in parts["transformer"].parameters()}
    fresh = [w for w in made.copies[0].parameters() if w.data_ptr() not in own]
    assert {w.dtype for w in fresh} == {torch.float8_e4m3fn}
    assert sum(w.numel() for w in fresh) == foreseen.weights > 0
    for name, weight in parts["transformer"].named_parameters():
        assert torch.equal(weight, before[name]) and weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("installed", "capability", "lacking"),
    [(True, (9, 0), None), (True, (8, 9), None), (True, (8, 0), "8.9"), (False, (9, 0), "torchao")],
)
def test_products_in_fp8_are_for_gpus_that_have_them(
    installed: bool, capability: Any, lacking: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchao raises on others, once all is loaded: they store weights so, as does the CPU."""
    parts = named_denoisers(load_pipeline(FLUX, "bf16", "cpu"))
    asked = parse_config(config(engine_args={"profile": "fp8", "batch_size": 2}))
    stored = copies_needed("fp8", parts, "cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object() if installed else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert (copies_needed("fp8", parts, "cuda") == stored) == (lacking is not None)
    monkeypatch.setattr("experiment.speed.choose_device", lambda _: "cuda:0")
    told = dict(speed(asked, FLUX, lambda _: None)).get("fp8 drafts", "")
    assert (lacking or "") in told and bool(told) == (lacking is not None)


def test_an_fp8_copy_is_planned_and_moves_with_its_pipeline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pipe = load_pipeline(FLUX, "bf16", "cpu")
    copies = copies_needed("fp8", named_denoisers(pipe), "cpu")
    needs = needs_of(pipe, CALL, 2)
    room = int(needs.peak(Placement()) * HEADROOM) + 1  # for all but the copy
    monkeypatch.setattr("pipelines.placement.free_memory", lambda _: room)
    plain, crowded = (
        settle(load_pipeline(FLUX, "bf16", "cpu"), "meta", CALL, 2, offload="none", copies=each)
        for each in ((), copies)
    )
    assert plain.placement == Placement() != crowded.placement
    with pytest.raises(UserError, match="no room"):
        check_profile("fp8", (), "model", settled=True)
    alone = Residence(pipe, "cpu", Placement(), alone=True)
    made = Denoiser(pipe, CALL, alone)
    made.use_profile("fp8")
    assert made.copies[0] in alone._staying()
