"""Draw, denoise and decode with an unmodified diffusers pipeline, and count what that costs.

Every call takes a batch of candidates and their prompt, or one for each; how big a batch may be is
the caller's business. Encoded prompts are remembered, rows through the denoiser are counted by a
hook.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from pipelines.arguments import Classes, Texts, batched, each_text, takes_several
from pipelines.attention import preferring
from pipelines.developing import Developer
from pipelines.devices import on
from pipelines.encoding import REMEMBERED, Encodings
from pipelines.guidance import guiding
from pipelines.layout import Layout, index_noise, no_noise
from pipelines.made import Decoded, Denoised, Drawn, together
from pipelines.memory_errors import free, out_of_memory
from pipelines.parts import denoisers, named_denoisers
from pipelines.placement import Residence
from pipelines.precise import coarse, in_float32, watched
from pipelines.profiles import THRESHOLD, Profile, make_profile, uncached
from pipelines.schedule import Level, levels
from pipelines.sde import Sde
from pipelines.window import Halt, StepWindow, Stretch, window
from utils import UserError

logger = logging.getLogger(__name__)


Method = TypeVar("Method", bound=Callable[..., Any])


def _in_turn(method: Method) -> Method:
    """A method of the denoiser that waits for other threads to be done with the pipeline."""

    @functools.wraps(method)
    def waiting(self: Denoiser, *args: Any, **kwargs: Any) -> Any:
        with self.turn:
            return method(self, *args, **kwargs)

    return cast(Method, waiting)


class Denoiser:
    """One loaded pipeline with the arguments of its call.

    turn: held while the pipeline is in use; threads take turns.
    """

    def __init__(
        self, pipe: Any, call_args: Mapping[str, Any], residence: Residence | None = None
    ) -> None:
        self.pipe = pipe
        self.residence = residence
        self._device: torch.device = pipe.device if residence is None else residence.device
        self.turn = threading.RLock()
        self.call_args = dict(call_args)
        self._parameters = inspect.signature(type(pipe).__call__).parameters
        self._classes = Classes(pipe, self._parameters, self._configs())
        self._rows = 0
        self._layouts: dict[Any, Layout] = {}  # by number of inference steps
        self._seen_between_steps = False
        self.singly = False  # pictures are decoded one by one, for there was no room for more
        self._running: StepWindow | None = None
        self._encodings: Encodings | None = None
        self.attention = "default"
        self._developer = Developer(pipe)
        self._drafting = False
        self._cheap: Profile | None = None  # how drafts are denoised
        self._profiles = {True: "draft", False: "exact"}
        self._halt_at_forward = False
        pipe.set_progress_bar_config(disable=True)
        if hasattr(pipe, "encode_prompt"):
            self._encodings = Encodings(pipe.encode_prompt, residence)
            object.__setattr__(pipe, "encode_prompt", self._encodings)
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                module.requires_grad_(False)  # only latents are ever differentiated
        for module in denoisers(pipe):
            module.register_forward_pre_hook(self._hook(module), with_kwargs=True)

    @functools.cached_property
    def video(self) -> bool:
        return "num_frames" in self._parameters

    def label(self, prompt: str) -> str | None:
        """The number of the class asked for, where the pipeline is class-conditional."""
        asked = self._classes.asked(self.call_args)
        return str(self._classes.number(self.call_args, prompt)) if asked else None

    @property
    def mixes(self) -> bool:
        """Whether candidates of several prompts can be denoised in one call: each prompt is encoded
        by itself, as it would be for a call of its own, or is a class."""
        by_text = self._encodings is not None and takes_several(self._parameters)
        return by_text or self._classes.asked(self.call_args)

    def _configs(self) -> list[Mapping[str, Any]]:
        parts: list[Any] = denoisers(self.pipe)
        return [part.config for part in parts]

    @contextmanager
    def drafting(self, inference_steps: int | None) -> Iterator[None]:
        """Within this block the schedule has so many inference steps; None or 0: its own.

        It is the caller's turn throughout.
        """
        with self.turn:
            before, self._drafting = (self.call_args, self._drafting), bool(inference_steps)
            if inference_steps:
                self.call_args = {**self.call_args, "num_inference_steps": inference_steps}
            try:
                yield
            finally:
                self.call_args, self._drafting = before

    def expect(self, prompts: Iterable[str]) -> None:
        """The prompts to come in their order: text encoders that visit the device serve several."""
        if self._encodings is not None:
            self._encodings.expect(prompts)

    def share(self, prompts: int) -> None:
        """So many prompts will share batches: each is to be encoded once."""
        if self._encodings is not None:
            self._encodings.remembered = REMEMBERED + prompts

    def use_attention(self, name: str) -> None:
        """Call the pipeline with this attention first from now on, its text encoders too."""
        if name != self.attention and self._encodings is not None:
            self._encodings.forget()
        self.attention = name

    def use_profile(
        self, name: str, quantization: str | None = None, threshold: float = THRESHOLD
    ) -> None:
        """Denoise drafts by this profile from now on; refuses models that cannot.

        quantization: of the weights as loaded, which no image is exact with. threshold: of a cache.
        """
        parts = named_denoisers(self.pipe)
        try:
            with on(self._device):
                self._cheap = make_profile(name, self.pipe, parts, threshold)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            raise UserError(
                f"There is no room here for what engine_args.profile '{name}' needs: set it to"
                " 'draft'."
            ) from error
        if self.residence is not None:
            self.residence.accompanied(self.copies)
        drafts = "draft" if name == "exact" else name
        self._profiles = {True: drafts, False: quantization or "exact"}

    def try_profile(self, prompt: str) -> None:
        """Take a draft's first step: some models take a cache and then fail under it (FLUX.2)."""
        if self._cheap is None or not self._cheap.alone:
            return
        before, drawn = self._rows, self.draw(prompt, (0,))
        try:
            with self.drafting(self.inference_steps):
                self.denoise(prompt, drawn.latents, (0,), drawn.step, drawn.step + 1)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(uncached(type(denoisers(self.pipe)[0]).__name__)) from error
        finally:
            self._rows = before

    def profile_of(self, draft: bool) -> str:
        """How candidates are denoised: "exact", or what makes them cheaper."""
        return self._profiles[draft]

    @property
    def twins(self) -> Sequence[torch.nn.Module]:
        """Copies of the denoisers that drafts are made by, where they are worth compiling."""
        return self.copies if self._cheap is not None and self._cheap.compiles else ()

    @property
    def copies(self) -> Sequence[torch.nn.Module]:
        """Copies of the denoisers that drafts are made by."""
        return () if self._cheap is None else self._cheap.copies

    @property
    def inference_steps(self) -> int:
        """Inference steps as the pipeline is called, by which its schedule is set."""
        parameter = self._parameters.get("num_inference_steps")
        with self.turn:  # another thread may be drafting
            steps = parameter and self.call_args.get(parameter.name, parameter.default)
        if not isinstance(steps, int):
            raise UserError(f"{type(self.pipe).__name__} has no number of steps to draft with.")
        return steps

    @property
    def rows(self) -> int:
        """Rows through the denoiser so far, guidance included."""
        return self._rows

    @_in_turn
    def draw(self, prompt: str, seeds: Sequence[int]) -> Drawn:
        """The noise plain diffusers would start from with a CPU generator for each seed.

        Latents: [n, ...] in the loop's own layout and scale. Costs no denoiser row.
        """
        seen = self._run(prompt, Stretch(0, None, None, tuple(seeds)), halt_at_forward=True)
        assert seen.state is not None and not seen.taken, "nothing was denoised before the loop"
        return Drawn(seen.state, seen.first)

    @_in_turn
    def picture(self, prompt: str, seed: int) -> Tensor:
        """The part of a fresh candidate's latents that is no noise, [1, ...]: what the picture that
        sampling starts from leaves in them."""
        with no_noise(self.pipe):
            return self.draw(prompt, (seed,)).latents

    @_in_turn
    def denoise(
        self,
        prompt: Texts,
        latents: Tensor,
        seeds: Sequence[int],
        start: int,
        until: int,
        guidance: float = 1.0,
        sde: Sde | None = None,
        *,
        differentiable: bool = False,
    ) -> Denoised:
        """Take steps [start, until); `guidance` is a factor on the pipeline's guidance scale.

        sde: every step but the last adds noise keyed by seed and step. The latents hold their own;
        what comes back is kept before its noise. differentiable: the result has a graph back to
        the latents.
        """
        texts = each_text(prompt, len(seeds))
        if not self._drafting or self._cheap is None:
            return self._denoised(
                texts, latents, seeds, start, until, guidance, sde, differentiable=differentiable
            )
        size = 1 if self._cheap.alone else len(seeds)
        parts = []
        with self._cheap.on():
            for i in range(0, len(seeds), size):
                mine = slice(i, i + size)
                with self._cheap.fresh():
                    parts.append(
                        self._denoised(
                            texts[mine], latents[mine], seeds[mine], start, until, guidance, sde
                        )
                    )
        return together(parts)

    def _denoised(
        self,
        prompt: Texts,
        latents: Tensor,
        seeds: Sequence[int],
        start: int,
        until: int,
        guidance: float = 1.0,
        sde: Sde | None = None,
        *,
        differentiable: bool = False,
    ) -> Denoised:
        """One batch of the pipeline's own."""
        before = self._rows
        stretch = Stretch(start, until, latents, tuple(seeds), sde=sde)
        seen = self._run(
            prompt, stretch, extra=self._guided(guidance), differentiable=differentiable
        )
        if seen.taken != until - start:
            raise UserError(
                f"{type(self.pipe).__name__} took {seen.taken} steps instead of {until - start}:"
                " leave out the call arguments that shorten its schedule."
            )
        assert seen.state is not None and seen.clean is not None
        rows = self._rows - before
        self._try_two_steps(prompt, stretch, seen)
        return Denoised(seen.state, seen.clean, rows, seen.noise_scale)

    def _try_two_steps(self, prompt: Texts, stretch: Stretch, seen: StepWindow) -> None:
        """Once, see what the pipeline does between steps: a stretch of one step does not show it.

        Uncounted, two steps in a run, and only if it begins with single ones.
        """
        if seen.taken == 1 and not self._seen_between_steps and stretch.start + 2 <= seen.total:
            counted = self._rows
            self._run(prompt, replace(stretch, stop=stretch.start + 2))
            self._rows = counted
            self._seen_between_steps = True
        self._seen_between_steps |= seen.taken > 1

    @_in_turn
    def decode(
        self,
        prompt: Texts,
        latents: Tensor,
        seeds: Sequence[int],
        steps: int,
        *,
        whole: bool = False,
    ) -> Decoded:
        """Images, or videos, of clean latents, by the pipeline's own way after its last step.

        whole: all at once, or raise where there is no memory for that.
        """
        texts = each_text(prompt, len(seeds))
        decode = self._decoded if whole else self._decoded_in_turn
        decoded = decode(texts, latents, seeds, steps)
        again = [i for i, sound in enumerate(decoded.sound) if not sound]
        if not again or not coarse(self.pipe):
            return decoded
        with in_float32(self.pipe.vae):
            for i in again:  # one at a time: they take twice the room
                one = self._decoded(
                    texts[i : i + 1], latents[i : i + 1].float(), seeds[i : i + 1], steps
                )
                decoded.pictures[i], decoded.filtered[i] = one.pictures[0], one.filtered[0]
                decoded.sound[i], decoded.again[i] = one.sound[0], True
        return decoded

    def _decoded_in_turn(
        self, texts: Sequence[str], latents: Tensor, seeds: Sequence[int], steps: int
    ) -> Decoded:
        """The batch at once; one by one from the first time on that there is no memory for that.

        A picture's last bits may depend on the size of its batch, so there is no way back.
        """
        if not self.singly:
            try:
                return self._decoded(texts, latents, seeds, steps)
            except RuntimeError as error:
                if len(seeds) == 1 or not out_of_memory(error):
                    raise
            free()  # outside the handler, which holds on to what had been made
            logger.warning(
                "Out of memory decoding %d images at once: one by one from here on.", len(seeds)
            )
            self.singly = True
        each = [
            self._decoded(texts[i : i + 1], latents[i : i + 1], seeds[i : i + 1], steps)
            for i in range(len(seeds))
        ]
        return Decoded(
            [picture for one in each for picture in one.pictures],
            [flag for one in each for flag in one.filtered],
            [flag for one in each for flag in one.sound],
            [False] * len(seeds),
        )

    @_in_turn
    def pixels(self, prompt: str, latents: Tensor, seeds: Sequence[int], steps: int) -> Tensor:
        """Decoded pixels [n, 3, H, W] in [0, 1] with a graph back to the clean latents."""
        output: dict[str, Any] = {}
        stretch = Stretch(steps, steps, latents, tuple(seeds), finish=True)
        extra = {"output_type": "pt"}
        self._run(prompt, stretch, extra=extra, output=output, differentiable=True)
        return torch.as_tensor(next(iter(output.values())))

    def _decoded(
        self, texts: Sequence[str], latents: Tensor, seeds: Sequence[int], steps: int
    ) -> Decoded:
        """Decoded once, in the decoder's own number format."""
        output: dict[str, Any] = {}
        stretch = Stretch(steps, steps, latents, tuple(seeds), finish=True)
        with watched(self.pipe, len(seeds)) as sound, self._developer.watching(output):
            self._run(texts, stretch, output=output)
        values = list(output.values())
        flags = output.get("nsfw_content_detected") or [False] * len(seeds)
        return Decoded(list(values[0]), [bool(flag) for flag in flags], sound, [False] * len(seeds))

    @_in_turn
    def layout(self, prompt: str) -> Layout:
        """How the loop's latents at step 0 are a permutation of spatial noise."""
        steps = self.call_args.get("num_inference_steps")
        if steps not in self._layouts:
            if self.draw(prompt, [0]).step:
                raise UserError("A pipeline that starts from an image has no noise to lay out.")
            with index_noise(self.pipe) as digits:
                self._layouts[steps] = digits.read(lambda: self.draw(prompt, [0]).latents)
        return self._layouts[steps]

    def steps(self, prompt: str, rows: int = 1) -> int:
        """Steps of the full schedule.

        rows: the batch size at which the prompt is encoded on the way, and remembered.
        """
        return self.span(prompt, rows)[1]

    @_in_turn
    def span(self, prompt: str, rows: int = 1) -> tuple[int, int]:
        """The step at which sampling starts (later than 0 for image to image), and all steps."""
        seen = self._to_the_loop(prompt, rows)
        return seen.first, seen.total

    @_in_turn
    def schedule(self, prompt: str, rows: int = 1) -> tuple[Level, ...]:
        """Signal and noise level before each step and after the last (so one more than steps)."""
        return levels(self._to_the_loop(prompt, rows).scheduler)

    @_in_turn
    def rows_each(self, prompt: str, guidance: float = 1.0) -> int:
        """Rows that one NFE takes, found by taking a step: 2 with classifier-free guidance.

        guidance: a factor on the pipeline's guidance scale, which may switch it on.
        """
        drawn = self.draw(prompt, [0])
        return self.denoise(prompt, drawn.latents, [0], drawn.step, drawn.step + 1, guidance).rows

    @_in_turn
    def warm_up(self, prompt: str, n: int) -> None:
        """Take a step of n candidates that nobody counts."""
        before, seeds = self._rows, tuple(range(n))
        drawn = self.draw(prompt, seeds)
        self.denoise(prompt, drawn.latents, seeds, drawn.step, drawn.step + 1)
        self._rows = before

    def _to_the_loop(self, prompt: str, rows: int) -> StepWindow:
        return self._run(prompt, Stretch(0, None, None, (0,) * rows), halt_at_forward=True)

    def _guided(self, factor: float) -> dict[str, float]:
        """The call arguments that scale guidance by a factor; none for a factor of 1."""
        if factor == 1.0:
            return {}
        scales = guiding(
            self._parameters,
            self.call_args,
            getattr(self.pipe, "config", {}),
            self._configs,
        )
        if not scales:
            who = type(self.pipe).__name__
            raise UserError(f"{who} has no guidance scale here that could be changed.")
        return {name: value * factor for name, value in scales.items()}

    def _run(
        self,
        prompt: Texts,
        stretch: Stretch,
        *,
        extra: Mapping[str, Any] | None = None,
        halt_at_forward: bool = False,
        output: dict[str, Any] | None = None,
        differentiable: bool = False,
    ) -> StepWindow:
        asked = batched(self._parameters, self._classes, self.call_args, prompt, stretch.seeds)
        arguments = {**asked, **(extra or {})}
        if self.residence is not None:
            self.residence.enter()
        if self._encodings is not None:
            self._encodings.texts = each_text(prompt, stretch.rows)
        call = type(self.pipe).__call__
        if differentiable:
            call = inspect.unwrap(call)  # below diffusers' no_grad
        # Offloading by groups waits for the current device's stream before it frees a layer.
        with on(self._device), preferring(self.attention), window(self.pipe, stretch) as seen:
            self._running, self._halt_at_forward = seen, halt_at_forward
            try:
                result = call(self.pipe, **arguments)
                if output is not None:
                    output.update(result)
            except Halt:
                self.pipe.maybe_free_model_hooks()  # the call's own end was not reached
            finally:
                self._running = None
        return seen

    def _hook(self, module: torch.nn.Module) -> Any:
        first = next(iter(inspect.signature(module.forward).parameters))

        def before_forward(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._running is None or not self._running.started:
                return  # before the loop (a text connector), or a call that is not ours
            if self._halt_at_forward:
                raise Halt
            self._rows += len(args[0] if args else kwargs[first])

        return before_forward
