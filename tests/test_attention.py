"""Which attention kernel comes first: that it does, only where it may, and how it is chosen."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.backends.cuda import flash_sdp_enabled
from torch.nn.functional import scaled_dot_product_attention as attend

import pipelines.tuning
from experiment.choices import settled
from experiment.config import parse_config
from experiment.fitting import first_attention
from experiment.resume import config_of_run
from experiment.runner import load, plan, run, saved, world
from experiment.speed import measures_attention
from experiment.store import RunStore
from pipelines.attention import KERNELS, can_attend, preferring
from pipelines.compiling import retraced
from pipelines.denoiser import Denoiser
from pipelines.gradient import climbed
from pipelines.parts import denoisers
from pipelines.tuning import faster_attention, remembered_attention
from tests.families import FAMILIES
from tests.graders import Watcher
from tests.test_run import config
from utils import UserError

PROMPT = "a red circle"
CLIP = {"name": "clip", "model_name": "shapes/models/shapes-clip"}


def denoiser_of(family: str) -> Denoiser:
    made = FAMILIES[family]
    return Denoiser(made.build(), made.call_args)


def one_step(denoiser: Denoiser, seeds: Sequence[int] = (0, 1)) -> Tensor:
    drawn = denoiser.draw(PROMPT, seeds)
    return denoiser.denoise(PROMPT, drawn.latents, seeds, drawn.step, drawn.step + 1).latents


@pytest.fixture
def query() -> Tensor:
    return torch.randn(2, 4, 64, 32, generator=torch.Generator().manual_seed(0))


# The kernel that comes first ----------------------------------------------------------------------


def test_math_is_another_kernel_within_the_block_and_only_there(query: Tensor) -> None:
    own = attend(query, query, query)
    with preferring("math"):
        other = attend(query, query, query)
    assert not torch.equal(own, other), "CPUs have two kernels, which round differently"
    torch.testing.assert_close(own, other)
    assert torch.equal(own, attend(query, query, query))
    with pytest.raises(ValueError, match="within"), preferring("math"):
        raise ValueError("within")
    assert torch.equal(own, attend(query, query, query))


@pytest.mark.parametrize("name", ["default", "cudnn", "flash", "efficient"])
def test_where_the_first_kernel_cannot_the_others_do(name: str, query: Tensor) -> None:
    own = attend(query, query, query)
    with preferring(name):
        assert torch.equal(own, attend(query, query, query))


def test_the_named_kernel_is_the_first_in_order() -> None:
    from torch.nn.attention import _cur_sdpa_kernel_backends as order

    before = order(with_priority=True)
    for name in ("cudnn", "flash", "efficient"):
        with preferring(name):
            assert order(with_priority=True)[0] == KERNELS[name]
            assert set(order()) == set(KERNELS.values())
        assert order(with_priority=True) == before


@pytest.mark.parametrize("family", ["flux", "sd15"])
def test_it_reaches_the_denoiser_of_any_pipeline(family: str) -> None:
    denoiser = denoiser_of(family)
    own = one_step(denoiser)
    denoiser.use_attention("math")
    other = one_step(denoiser)
    assert not torch.equal(own, other)
    torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
    denoiser.use_attention("default")
    assert torch.equal(own, one_step(denoiser))


def test_prompts_are_encoded_anew_by_another_kernel() -> None:
    """Or what was encoded before the choice would differ from the same after a resume."""
    denoiser = denoiser_of("flux")
    calls: list[bool] = []
    denoiser.pipe.text_encoder_2.register_forward_pre_hook(
        lambda *_: calls.append(flash_sdp_enabled())
    )
    for name in ("default", "default", "math", "math"):
        denoiser.use_attention(name)
        one_step(denoiser)
    assert calls == [True, False]


def test_gradients_are_taken_by_the_same_kernel_forward_and_again() -> None:
    denoiser, seen = denoiser_of("sd15"), []
    for part in denoisers(denoiser.pipe):
        part.register_forward_pre_hook(lambda *_: seen.append(flash_sdp_enabled()))
    x = denoiser.draw(PROMPT, [0]).latents
    found = {}
    for name in ("default", "math"):
        denoiser.use_attention(name)
        found[name] = climbed(
            denoiser, lambda p: p.flatten(1).mean(1), PROMPT, x, [0], 0, 2, 6
        ).gradient
    taken = len(seen) - 4  # by the first, which also tries what happens between two steps
    assert taken >= 4 and seen == [True] * taken + [False] * 4
    assert not torch.equal(*found.values())
    torch.testing.assert_close(*found.values(), rtol=1e-2, atol=1e-5)


# Compiled -----------------------------------------------------------------------------------------


@pytest.fixture
def _fresh_compiler() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_graph_is_traced_with_the_kernel_that_comes_first(query: Tensor) -> None:
    graphs: list[str] = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(str(graph.graph))
        return graph.forward

    def attended(x: Tensor) -> Tensor:
        return attend(x, x, x)

    for name in ("default", "math"):
        torch.compiler.reset()
        compiled = torch.compile(attended, backend=aot_autograd(fw_compiler=keep))
        with torch.no_grad():
            with preferring(name):
                compiled(query)
            compiled(query)  # a graph keeps its kernel
    assert ["flash" in graph for graph in graphs] == [True, False]


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
def test_the_compilers_files_tell_kernels_apart(
    query: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))

    def attended(x: Tensor) -> Tensor:
        return attend(x, x, x)

    own = attended(query)
    found = []
    for name in ("default", "math", "default"):
        torch.compiler.reset()
        with torch.no_grad(), preferring(name):
            found.append(torch.equal(own, torch.compile(attended)(query)))
    assert found == [True, False, True]


# Other threads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2])
def test_verifiers_never_see_it(at_once: int, tmp_path: Path) -> None:
    Watcher.watched.clear()
    asked = config(
        prompt=None,
        num_prompts=2,
        verifier_args={"name": "tests.graders:Watcher"},
        judges=[{"name": "tests.graders:Watcher"}],
        engine_args={"attention": "math", "batch_size": 2, "prompts_at_once": at_once},
        search_args={"search_rounds": 1},
        pipeline_call_args={**config()["pipeline_call_args"], "num_inference_steps": 1},
    )
    run(parse_config(asked), str(tmp_path))
    assert len(Watcher.watched) == 4 and all(every for _, every in Watcher.watched)
    assert (len({name for name, _ in Watcher.watched}) > 1) == (at_once > 1)
    assert flash_sdp_enabled()


# What is chosen, and kept -------------------------------------------------------------------------


def asking(**engine: Any) -> Any:
    return parse_config(config(engine_args=engine))


def test_on_a_cpu_auto_is_torchs_own_and_the_run_says_so() -> None:
    asked = asking()
    engine = load(asked, plan(asked))
    assert engine.saved(asked)["engine_args"]["attention"] == "default"


def test_a_run_keeps_to_its_attention(tmp_path: Path) -> None:
    asked = asking(attention="math", batch_size=2)
    engine = load(asked, plan(asked))
    assert engine.denoiser.attention == "math"
    store = RunStore.create(str(tmp_path), asked, "r")
    store.write_json("config.json", engine.saved(asked))
    assert config_of_run(store.folder, asking(batch_size=2)).engine_args.attention == "math"
    whole = saved(asked, 2)
    del whole["engine_args"]["attention"]  # of a run from before there was a choice
    store.write_json("config.json", whole)
    assert config_of_run(store.folder, asking(batch_size=2)).engine_args.attention == "default"


def test_processes_of_a_run_agree_on_it(tmp_path: Path) -> None:
    asked = asking()
    planned = plan(asked)
    engine = load(asked, planned)
    other = Denoiser(engine.denoiser.pipe, {}, engine.denoiser.residence)
    other.attention = "cudnn"
    store = RunStore.create(str(tmp_path), asked, "r")
    first, others = settled(asked, replace(engine, denoiser=other), store)
    store.write_json("manifest.json", world(engine, planned, store.folder))
    assert not others and first.engine_args.attention == "cudnn"
    second, others = settled(asked, engine, store)
    assert others == {"attention"} and second.engine_args.attention == "cudnn"


@pytest.mark.parametrize("name", ["cudnn", "efficient"])
def test_a_kernel_that_the_device_lacks_is_refused_before_weights_load(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiment.runner.load_pipeline", pytest.fail)
    asked = asking(attention=name)
    with pytest.raises(UserError, match=rf"'cpu' has no '{name}' attention in fp32: set"):
        load(asked, plan(asked))
    assert can_attend("flash", "cpu", "fp32") and can_attend("math", "mps", "fp16")
    assert not can_attend("flash", "mps", "fp16")


def test_a_verifier_that_judges_meanwhile_keeps_torchs_own() -> None:
    with pytest.raises(UserError, match=r"engine_args\.attention to 'default'"):
        first_attention(asking(attention="math"), "cpu", apart=True)
    assert first_attention(asking(attention="auto"), "cpu", apart=True) == "default"
    assert not measures_attention(on_gpu(), "cuda", apart=True)


def on_gpu(**changes: Any) -> Any:
    return parse_config(config(**{"torch_dtype": "bf16", **changes}))


@pytest.mark.parametrize(
    ("asked", "device", "expected"),
    [
        (on_gpu(), "cuda:0", True),
        (on_gpu(), "cpu", False),
        (on_gpu(engine_args={"attention": "flash"}), "cuda", False),
        (on_gpu(torch_dtype="fp32"), "cuda", False),
        (on_gpu(verifier_args=CLIP, search_args={"search_method": "ascent"}), "cuda", False),
    ],
)
def test_when_it_is_measured(asked: Any, device: str, expected: bool) -> None:
    assert measures_attention(asked, device, apart=False) is expected


@pytest.mark.parametrize(
    "compile_", ["off", pytest.param("on", marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
def test_loading_measures_it_and_the_next_time_knows(
    compile_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU cuDNN's place is taken by the others, so which is faster is chance."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("experiment.fitting.measures_attention", lambda *_, **__: True)
    monkeypatch.setattr("experiment.fitting.can_attend", lambda *_: True)
    monkeypatch.setattr("experiment.fitting.retraced", partial(retraced, backend="eager"))
    asked = asking(compile=compile_, batch_size=2)
    engine = load(asked, plan(asked))
    (kept,) = tmp_path.rglob("attention.json")
    assert list(json.loads(kept.read_text()).values()) == [engine.denoiser.attention]
    monkeypatch.setattr(pipelines.tuning, "faster_attention", pytest.fail)
    again = load(asked, plan(asked))
    assert again.saved(asked) == engine.saved(asked)
    assert again.compiled == (compile_ == "on")


# Measuring ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured_one() -> Denoiser:
    return denoiser_of("sd15")


@pytest.fixture
def sd15(measured_one: Denoiser) -> Denoiser:
    measured_one.use_attention("default")
    return measured_one


class Clock:
    """The steps of each attention take so long; the one that is not counted takes forever."""

    def __init__(self, *costs: Sequence[float]) -> None:
        steps = itertools.chain.from_iterable((99.0, *each) for each in costs)
        self._ends = itertools.chain.from_iterable((0.0, cost) for cost in steps)

    def __call__(self) -> float:
        return next(self._ends)


@pytest.mark.parametrize(
    ("own", "cudnn", "chosen"),
    [
        ((1.0, 1.1, 1.0, 1.2, 1.0), (0.99, 0.985, 0.981, 3.0, 1.0), "default"),
        ((1.0, 1.1, 1.0, 1.2, 1.0), (1.5, 0.979, 1.5, 1.5, 1.5), "cudnn"),
        ((1.0,) * 5, (1.2,) * 5, "default"),
    ],
)
def test_cudnn_has_to_be_faster_by_two_percent(
    own: Sequence[float], cudnn: Sequence[float], chosen: str, sd15: Denoiser
) -> None:
    denoiser, compiled = sd15, []
    found = faster_attention(
        denoiser, PROMPT, 2, lambda: compiled.append(denoiser.attention), Clock(own, cudnn)
    )
    assert found == denoiser.attention == chosen
    assert compiled == (["cudnn"] if chosen == "cudnn" else ["cudnn", "default"])


@pytest.mark.parametrize("where", ["own", "cudnn"])
def test_what_fails_while_it_is_measured_leaves_torchs_own(
    where: str, sd15: Denoiser, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, plain = sd15, sd15.denoise

    def failing(*args: Any, **kwargs: Any) -> Any:
        if where == "own" or denoiser.attention == "cudnn":
            raise RuntimeError("cuDNN Frontend error: no valid execution plans built")
        return plain(*args, **kwargs)

    monkeypatch.setattr(denoiser, "denoise", failing)
    assert faster_attention(denoiser, PROMPT, 1, lambda: None) == "default" == denoiser.attention


def test_it_is_measured_once_for_a_model_and_a_machine(
    sd15: Denoiser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    denoiser, begun = sd15, []
    answers = iter(["cudnn", "default", "cudnn"])

    def measured(denoiser: Denoiser, *_: Any) -> str:
        denoiser.use_attention(next(answers))
        return denoiser.attention

    monkeypatch.setattr(pipelines.tuning, "faster_attention", measured)

    def taken(device: str, n: int) -> str:
        denoiser.use_attention("default")
        start: Callable[[], None] = lambda: begun.append(denoiser.attention)  # noqa: E731
        remembered_attention(denoiser, PROMPT, n, {"device": device}, start, pytest.fail)
        return denoiser.attention

    take = partial(taken, "x")
    assert [take(1), take(1), take(2), taken("x", 1)] == ["cudnn", "cudnn", "default", "cudnn"]
    # Compiled before it is measured, or once, for what is known.
    assert begun == ["default", "cudnn", "default", "cudnn"]
    (kept,) = tmp_path.rglob("*.json")
    kept.write_text('{"a": 1}')
    assert take(1) == "cudnn" and list(json.loads(kept.read_text()).values()) == ["cudnn"]
