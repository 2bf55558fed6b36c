"""Signal and noise levels of a scheduler, its clean estimate, and the forward process back.

Nothing here knows a scheduler by name: levels are read off its own forward process, and whether
it keeps a history between steps is found by trying.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from utils import UserError


@dataclass(frozen=True)
class Level:
    """A point of the forward process: x = signal * x0 + noise * n, n ~ N(0, I)."""

    signal: float
    noise: float


CLEAN = Level(1.0, 0.0)


def levels(scheduler: Any) -> tuple[Level, ...]:
    """The level before each step and, last, after all of them; timesteps must have been set."""
    probe = copy.deepcopy(scheduler)
    found = tuple(_level(probe, t) for t in probe.timesteps)
    if found[0].noise * found[-1].signal < found[-1].noise * found[0].signal:
        raise UserError(
            f"The forward process of {type(scheduler).__name__} does not run from clean to noise"
            " as it is set up here, so no noise can be added back."
        )
    return (*found, CLEAN)


def _level(probe: Any, timestep: Tensor) -> Level:
    """The level at one timestep, by sending a unit signal and a unit noise through."""
    for name in ("_begin_index", "_step_index"):  # set, they would override the timestep
        if hasattr(probe, name):
            setattr(probe, name, None)
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    at = timestep.reshape(1).cpu()
    if hasattr(probe, "add_noise"):
        add = probe.add_noise
        return Level(float(add(one, zero, at)), float(add(zero, one, at)))
    if hasattr(probe, "scale_noise"):
        mix = probe.scale_noise
        return Level(float(mix(one, at, zero)), float(mix(zero, at, one)))
    name = type(probe).__name__
    raise UserError(f"The scheduler {name} has no forward process, so no noise can be added back.")


def renoised(latents: Tensor, noise: Tensor, now: Level, then: Level) -> Tensor:
    """Latents taken back from level `now` to the noisier level `then` with unit `noise`.

    With keep = signal_then / signal_now: x' = keep x + sqrt(noise_then^2 - keep^2 noise_now^2) n.
    Computed in float64, returned in the latents' dtype.
    """
    if now.signal == 0:  # pure noise holds no signal to keep
        keep, fill = then.noise / now.noise, 0.0
    else:
        keep = then.signal / now.signal
        fill = max(then.noise**2 - (keep * now.noise) ** 2, 0.0) ** 0.5
    return (keep * latents.double() + fill * noise.double()).to(latents.dtype)


def clean_estimate(
    stepped: tuple[Any, ...], scheduler: Any, step: int, model_output: Tensor, sample: Tensor
) -> Tensor:
    """The step's estimate of the clean latents: the scheduler's own where it returns one.

    Otherwise from its prediction type; flow-matching schedulers, which predict the velocity
    n - x0, name none: a straight line leads from here to the last sigma.
    """
    if len(stepped) > 1:
        own: Tensor = stepped[1]
        return own
    kind = getattr(scheduler.config, "prediction_type", "flow_prediction")
    if kind == "flow_prediction" and hasattr(scheduler, "sigmas"):
        return sample + (scheduler.sigmas[-1] - scheduler.sigmas[step]) * model_output
    level = _level(copy.deepcopy(scheduler), scheduler.timesteps[step])
    if kind == "epsilon":
        return (sample - level.noise * model_output) / level.signal
    if kind == "v_prediction":
        return level.signal * sample - level.noise * model_output
    if kind == "sample":
        return model_output
    return sample - level.noise * model_output


def is_straight(scheduler: Any, steps: int = 9) -> bool | None:
    """Whether its forward process is a straight line from image to noise, as flow models have it.

    Then signal + noise is 1 all along; with noise added to a kept signal, or variance preserved,
    it is more. None for a scheduler that cannot be tried on its own.
    """
    try:
        probe = copy.deepcopy(scheduler)
        set_steps(probe, steps)
        level = levels(probe)[len(probe.timesteps) // 2]
    except Exception:  # arguments or numbers of steps of its own
        return None
    return abs(level.signal + level.noise - 1) < 1e-3


def is_one_step(scheduler: Any, steps: int = 6) -> bool:
    """Whether a step depends on nothing but its own input, so that a run may be cut anywhere.

    Found by taking the steps of a tiny random trajectory in one go and again from the middle:
    a solver that keeps a history (DPM++ 2M, UniPC, PNDM) comes out elsewhere. False where a
    scheduler cannot be tried on its own: nothing shows that cutting would do no harm.
    """
    try:
        return _comes_out_alike(scheduler, steps)
    except Exception:  # arguments of its own, or numbers of steps it takes no other of
        return False


def _comes_out_alike(scheduler: Any, steps: int) -> bool:
    whole, cut = copy.deepcopy(scheduler), copy.deepcopy(scheduler)
    set_steps(whole, steps)
    set_steps(cut, steps)
    if len(whole.timesteps) != steps:  # several model calls a step (Heun, PNDM's warm-up)
        return False
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 4, 4, generator=draw)
    middle = steps // 2
    for i, t in enumerate(whole.timesteps):
        output = torch.randn(x.shape, generator=draw)
        if i == middle and hasattr(cut, "set_begin_index"):
            cut.set_begin_index(i)
        after = _step(whole, output, t, x)
        if i >= middle and not torch.equal(after, _step(cut, output, t, x)):
            return False
        x = after
    return True


def set_steps(scheduler: Any, steps: int) -> None:
    """Set so many inference steps on a scheduler that no pipeline drives."""
    shifts = getattr(scheduler.config, "use_dynamic_shifting", False)
    # One that replaces another keeps its settings, also those that it does not know.
    shifts = shifts and "mu" in inspect.signature(scheduler.set_timesteps).parameters
    scheduler.set_timesteps(steps, **({"mu": 1.0} if shifts else {}))


def _step(scheduler: Any, output: Tensor, timestep: Tensor, sample: Tensor) -> Tensor:
    if hasattr(scheduler, "scale_model_input"):
        scheduler.scale_model_input(sample, timestep)
    keyed = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": torch.Generator().manual_seed(0)} if keyed else {}
    stepped: Tensor = scheduler.step(output, timestep, sample, return_dict=False, **extra)[0]
    return stepped
