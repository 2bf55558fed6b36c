"""Run any part of a diffusers pipeline's denoising loop, without a copy of the pipeline.

A pipeline asks its scheduler which steps to take. A stand-in that answers with steps [start, stop)
only lets one call of the unmodified pipeline draw its own noise, denoise a stretch, or just decode.
The loop's state is what `prepare_latents` and `scheduler.step` return: captured and substituted
there, it stays in the pipeline's own layout and scale, whatever `output_type` would make of it.

Exact for one-step schedulers (DDIM, Euler, flow-matching Euler); solvers with a history (DPM++ 2M,
UniPC, PNDM) run whole, from step 0 to the last. A pipeline that changes the latents itself between
two steps (a mask blended in, a second set of latents beside them) is refused where it does so. What
cannot be seen is one that counts its loop's rounds (skip-layer guidance from a given step on, a
control network for a part of the steps): a stretch begins its count at 0.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipelines.schedule import clean_estimate
from pipelines.sde import Sde, a_row, step_without_noise, values_of, with_noise
from utils import UserError, seed_of


class Halt(Exception):
    """Leaves a pipeline's call early, with what was wanted in hand."""


@dataclass(frozen=True)
class Stretch:
    """Which part of the loop to run.

    start, stop: steps [start, stop) of the full schedule; stop None: to the end.
    state: the loop's latents at `start`; None lets the pipeline draw its own.
    seeds: one a candidate; they key the noise of stochastic steps.
    finish: go on to the decoded images after the last step, instead of leaving the call there.
    sde: every step but the last adds noise; `state` already holds its own, and what the stretch
        comes to is kept before it.
    """

    start: int
    stop: int | None
    state: Tensor | None
    seeds: tuple[int, ...]
    finish: bool = False
    sde: Sde | None = None

    @property
    def rows(self) -> int:
        return len(self.seeds)


class StepWindow:
    """Stands in for a scheduler within one pipeline call, and keeps what came by."""

    _OWN = frozenset(
        {
            "scheduler", "stretch", "timesteps", "set_timesteps", "step", "set_begin_index",
            "total", "schedule", "first", "state", "clean", "noise_scale", "taken", "started",
            "last_timestep", "_signature",
        }
    )  # fmt: skip

    def __init__(self, scheduler: Any, stretch: Stretch) -> None:
        self.scheduler = scheduler
        self.stretch = stretch
        self.total = 0  # steps of the full schedule
        self.first = 0  # the step at which the pipeline itself would start
        self.taken = 0
        self.started = False  # whether the pipeline has made its first latents
        self.state = stretch.state  # the loop's latents as drawn, or after the last step taken
        self.clean: Tensor | None = None  # the last step's estimate of the clean latents
        self.noise_scale: Tensor | None = None  # of the noise still to be added to the state
        self.timesteps: Tensor | None = None
        self.schedule: tuple[float, ...] = ()  # the full one's timesteps, for steps that add noise
        self.last_timestep: Tensor | None = None
        # Pipelines look at these signatures to see what the scheduler takes (`sigmas`, `eta`,
        # `generator`), so they have to stay its own.
        self.set_timesteps = _signed_as(scheduler.set_timesteps, self._set_timesteps)
        self.step = _signed_as(scheduler.step, self._step)
        self._signature = _signature(type(scheduler).step)
        if not {"model_output", "timestep", "sample"} <= set(self._signature.parameters):
            raise UserError(
                f"{type(scheduler).__name__} takes steps of a kind that cannot be followed: use"
                " another scheduler."
            )
        if hasattr(scheduler, "set_begin_index"):  # pipelines ask with hasattr
            self.set_begin_index = self._set_begin_index

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["scheduler"], name)

    def __deepcopy__(self, memo: Any) -> Any:
        raise UserError(
            "This pipeline copies its scheduler to denoise a second set of latents (sound, for"
            " example), which cannot be searched over."
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._OWN:
            self.__dict__[name] = value
        else:  # what a pipeline sets (Z-Image: `sigma_min`) is meant for the real scheduler
            setattr(self.__dict__["scheduler"], name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # pipelines ask isinstance(scheduler, ...)
        return type(self.__dict__["scheduler"])

    def cut(self, timesteps: Tensor) -> Tensor:
        """The window's part of the timesteps that the pipeline would run through."""
        self.first = self.total - len(timesteps)
        begin = max(self.stretch.start, self.first)
        return timesteps[begin - self.first : self.stop - self.first]

    @property
    def stop(self) -> int:
        return self.total if self.stretch.stop is None else self.stretch.stop

    def _set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        self.scheduler.set_timesteps(*args, **kwargs)
        self.timesteps = self.scheduler.timesteps
        self.total = len(self.scheduler.timesteps)
        if self.stretch.sde is not None:
            self.schedule = tuple(self.scheduler.timesteps.tolist())
        self.last_timestep = self.scheduler.timesteps[-1:]

    def _set_begin_index(self, begin_index: int = 0) -> None:
        self.scheduler.set_begin_index(max(begin_index, self.stretch.start))

    def _step(self, *args: Any, **kwargs: Any) -> Any:
        at = max(self.stretch.start, self.first) + self.taken
        call = self._signature.bind(*args, **kwargs)
        sample, model_output = call.arguments["sample"], call.arguments["model_output"]
        self._follow(at, call.arguments["timestep"], sample)
        if "generator" in self._signature.parameters:
            call.arguments["generator"] = self._generators(at, len(sample))
        self.taken += 1
        if self.stretch.sde is not None and at + 1 < self.total:
            return self._noisy_step(self.stretch.sde, at, call)
        stepped = self.scheduler.step(*call.args, **call.kwargs)
        values = values_of(stepped)
        after, rows = values[0], self.stretch.rows
        # Beyond the candidates' rows are guidance's copies (DiT). Whole, the state stays the very
        # tensor that the next step is given, so that following it costs nothing.
        self.state = after if len(after) == rows else after[:rows]
        if at + 1 == self.stop:
            self.clean = self._clean(at, values, model_output, sample)
            if not self.stretch.finish:
                raise Halt
        return stepped

    def _noisy_step(self, sde: Sde, at: int, call: inspect.BoundArguments) -> Any:
        """A step that adds noise, by the scheduler's own rule where it has one, else by the SDE's.

        What the pipeline goes on with holds the noise; what is kept at the stretch's end does not.
        """
        sample, model_output = call.arguments["sample"], call.arguments["model_output"]
        stepped, own = step_without_noise(self.scheduler, call)
        values = values_of(stepped)
        clean = clean_estimate(values, self.scheduler, at, model_output, sample)
        mean, rows = values[0], self.stretch.rows
        scale: Tensor | float
        if own is None:
            now, then = sde.levels(self.scheduler, self.schedule)[at : at + 2]
            moved, scale = sde.mean(sample, clean, now, then)
            mean = moved.to(mean.dtype)
        else:
            scale = own[:rows]
        if at + 1 == self.stop:
            self.state, self.clean = mean[:rows], clean[:rows]
            self.noise_scale = a_row(scale, rows)
            raise Halt
        self.state = with_noise(mean[:rows], scale, self.stretch.seeds, at + 1)
        copies = len(mean) // rows  # guidance's (DiT)
        going_on = self.state if copies == 1 else torch.cat([self.state] * copies)
        if isinstance(stepped, tuple):
            return (going_on, *values[1:])
        stepped.prev_sample = going_on
        return stepped

    def _follow(self, at: int, timestep: Any, sample: Tensor) -> None:
        """Check that the loop is where it is taken to be, with the latents it is taken to have."""
        if not self.taken and float(timestep) != float(self.scheduler.timesteps[at]):
            raise UserError(
                f"This pipeline took another step than step {at} of its schedule, so it cannot be"
                " searched over."
            )
        if not _alike(sample, self.state):
            raise UserError(
                "This pipeline changes its latents between two steps of its scheduler (by a mask,"
                " or an image it holds fast), so it cannot be searched over."
            )

    def _clean(
        self, at: int, values: tuple[Any, ...], model_output: Tensor, sample: Tensor
    ) -> Tensor | None:
        if at + 1 == self.total:
            return self.state
        estimate = clean_estimate(values, self.scheduler, at, model_output, sample)
        return estimate[: self.stretch.rows]

    def _generators(self, step: int, rows: int) -> list[torch.Generator]:
        """A generator a row, keyed by seed and step, so that cutting a run changes no noise."""
        seeds = self.stretch.seeds * (rows // max(self.stretch.rows, 1))
        return [torch.Generator().manual_seed(seed_of("step", s, step)) for s in seeds]


def _alike(sample: Tensor, state: Tensor | None) -> bool:
    """Whether a step's input is the state kept, beyond whose rows are guidance's copies (DiT)."""
    if state is None or sample is state:
        return state is not None
    if sample.shape[1:] != state.shape[1:] or len(sample) % len(state):
        return False
    rows = sample[: len(state)]
    return bool(((rows == state) | (rows.isnan() & state.isnan())).all())


@functools.lru_cache
def _signature(method: Callable[..., Any]) -> inspect.Signature:
    """As the method is called on an object: working it out takes longer than some steps do."""
    whole = inspect.signature(method)
    return whole.replace(parameters=list(whole.parameters.values())[1:])


def _signed_as(original: Callable[..., Any], replacement: Callable[..., Any]) -> Any:
    """`replacement` under the name and signature of `original`."""
    return functools.wraps(original)(lambda *args, **kwargs: replacement(*args, **kwargs))


@contextmanager
def window(pipe: Any, stretch: Stretch) -> Iterator[StepWindow]:
    """Within this block one call of `pipe(...)` takes the stretch's steps from its state."""
    stand_in = StepWindow(pipe.scheduler, stretch)
    replaced: dict[str, Any] = {"scheduler": stand_in}
    if _drops_steps(pipe):
        replaced["get_timesteps"] = _cut_late(pipe.get_timesteps, stand_in)
    else:
        stand_in.set_timesteps = _signed_as(stand_in.scheduler.set_timesteps, _cut_early(stand_in))
    with _replaced(pipe, replaced), _captured_start(pipe, stand_in):
        yield stand_in


def _drops_steps(pipe: Any) -> bool:
    """Whether the pipeline's call leaves out the first steps itself (image to image)."""
    call = inspect.unwrap(type(pipe).__call__).__code__
    return hasattr(pipe, "get_timesteps") and "get_timesteps" in call.co_names


def _cut_early(stand_in: StepWindow) -> Callable[..., None]:
    """`set_timesteps` that leaves only the window's steps to be seen."""

    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        stand_in._set_timesteps(*args, **kwargs)
        stand_in.timesteps = stand_in.cut(stand_in.scheduler.timesteps)
        if stand_in.stretch.start and hasattr(stand_in.scheduler, "set_begin_index"):
            stand_in._set_begin_index(0)

    return set_timesteps


def _cut_late(get_timesteps: Callable[..., Any], stand_in: StepWindow) -> Callable[..., Any]:
    """Image to image: the pipeline drops the first steps itself, so the window cuts after it."""

    @functools.wraps(get_timesteps)
    def cut(*args: Any, **kwargs: Any) -> Any:
        timesteps, *rest = get_timesteps(*args, **kwargs)
        return (stand_in.cut(timesteps), *rest)

    return cut


@contextmanager
def _captured_start(pipe: Any, stand_in: StepWindow) -> Iterator[None]:
    """Take the loop's first latents from where the pipeline makes them, or put them there.

    The pipeline draws its own noise in either case: what it draws later from the same generators
    (a decoder's noise, say) must not move.
    """
    if hasattr(pipe, "prepare_latents"):
        wrapped = _substituted(pipe.prepare_latents, stand_in)
        with _replaced(pipe, {"prepare_latents": wrapped}):
            yield
        return
    # No prepare_latents (DiT): the first noise drawn is the state.
    module: Any = sys.modules[type(pipe).__module__]
    original = getattr(module, "randn_tensor", None)
    if original is None:
        raise UserError(f"Where {type(pipe).__name__} draws its noise could not be found.")
    module.randn_tensor = _substituted(original, stand_in)
    try:
        yield
    finally:
        module.randn_tensor = original


def _substituted(draw: Callable[..., Any], stand_in: StepWindow) -> Callable[..., Any]:
    """`draw`, its first result captured as the state, or replaced by the state handed in."""
    calls = 0

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        full = functools.partial(_never_empty, stand_in=stand_in)
        result = draw(*map(full, args), **{k: full(v) for k, v in kwargs.items()})
        stand_in.started = True
        if calls > 1:
            return result
        latents, rest = (result[0], result[1:]) if isinstance(result, tuple) else (result, None)
        if stand_in.stretch.state is None:
            stand_in.state = latents
        else:
            latents = stand_in.stretch.state
        return latents if rest is None else (latents, *rest)

    return drawn


def _never_empty(value: Any, stand_in: StepWindow) -> Any:
    """Image to image noises its image at the first timestep, of which a decoding window has none;
    any will do, since the result is replaced."""
    if isinstance(value, Tensor) and value.numel() == 0 and stand_in.last_timestep is not None:
        return stand_in.last_timestep.expand(stand_in.stretch.rows)
    return value


@contextmanager
def _replaced(pipe: Any, attributes: dict[str, Any]) -> Iterator[None]:
    """Instance attributes of the pipeline, for a while; not registered in its config."""
    before = {name: pipe.__dict__[name] for name in attributes if name in pipe.__dict__}
    for name, value in attributes.items():
        object.__setattr__(pipe, name, value)
    try:
        yield
    finally:
        for name in attributes:
            if name in before:
                object.__setattr__(pipe, name, before[name])
            else:
                object.__delattr__(pipe, name)
