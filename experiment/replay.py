"""Make a recorded candidate again from its rows: the same noise, the same steps, the same bits.

A row tells how its candidate was made (`recipe`), and the rows of one seed tell each stretch that
it was denoised in: to which step, in what batch, under what guidance. An image depends on its batch
size in the last bits and on nothing else of its batch, so a batch of copies stands in for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiment.config import ExperimentConfig, parse_config, read_json
from experiment.prompts import Prompt
from experiment.records import CANDIDATES, candidate_files
from experiment.replay_kept import Replayed, kept
from experiment.replay_rows import fitting, recorded_rows
from experiment.replay_wanted import wanted
from experiment.resume import as_begun
from experiment.runner import Engine, load, plan
from pipelines.batching import spans
from pipelines.gradient import climbed
from pipelines.schedule import renoised
from pipelines.sde import Sde, unit_noise
from pipelines.space import LatentSpace, neighbours, noised
from search.core import Candidates, Rollout, Scored, adds_noise, draft_steps
from search.ledger import Cost, Ledger
from search.play import play
from utils import UserError


def replay(folder: Path, candidate: str, overrides: Mapping[str, Any]) -> Replayed:
    """Make one candidate of a run again, below its folder.

    candidate: as `wanted` takes it. overrides: changed call arguments; then it is another image
    from the same noise, which only fresh noises can be.
    """
    config = _config(folder, overrides)
    rows = recorded_rows(folder)
    row = wanted(rows, candidate)
    mine = [r for r in rows if r["prompt_index"] == row["prompt_index"]]
    if overrides and row["recipe"]["op"] != "draw":
        raise UserError(
            f"Candidate {candidate} was made by '{row['recipe']['op']}' from others, so with other"
            " arguments it would be none of its kind: choose one whose recipe says 'draw'."
        )
    planned = plan(config)
    prompt = _prompt(planned.prompts, row)
    engine = load(config, planned)
    with fitting(folder):
        maker = Maker(engine, config, mine, prompt)
        media = maker.image(row) if not overrides else maker.drawn_image(row)
    return kept(folder, config, prompt, row, media, overrides)


def _config(folder: Path, overrides: Mapping[str, Any]) -> ExperimentConfig:
    if not candidate_files(folder):
        raise UserError(f"'{folder}' is no run folder: it has no {CANDIDATES}.")
    content = read_json(str(folder / "config.json"))
    for name, value in overrides.items():
        part, _, key = name.partition(".")
        if part != "pipeline_call_args" or not key:
            raise UserError(f"--replay takes changes of pipeline_call_args only, not '{name}'.")
        content["pipeline_call_args"][key] = value
    return parse_config(as_begun(content))


def _prompt(prompts: Sequence[Prompt], row: Mapping[str, Any]) -> Prompt:
    for prompt in prompts:
        if prompt.index == row["prompt_index"] and prompt.text == row["prompt"]:
            return prompt
    raise UserError(
        f"The prompts of the run's config no longer hold '{row['prompt']}' as number"
        f" {row['prompt_index']}: bring the prompt file back."
    )


class Found(Exception):
    """Ends a search once it has made what was looked for."""

    def __init__(self, candidates: Candidates) -> None:
        super().__init__()
        self.candidates = candidates


class Maker:
    """Makes one prompt's recorded candidates again."""

    def __init__(
        self, engine: Engine, config: ExperimentConfig, rows: list[dict[str, Any]], prompt: Prompt
    ) -> None:
        self._engine = engine
        self._denoiser = engine.denoiser
        self._config = config
        self._rows = rows
        self._prompt = prompt
        noisy = adds_noise(config.search_args.build())
        self._sde = Sde(**config.stochastic_args.model_dump()) if noisy else None
        self._levels = self._denoiser.schedule(prompt.text, engine.batch_size)
        self._made: dict[tuple[int, int], Candidates] = {}
        self._origins: dict[int, Candidates] = {}
        self._recipes: dict[int, Mapping[str, Any]] = {}
        for row in rows:
            self._learn(row["seed"], row["recipe"])

    def image(self, row: Mapping[str, Any]) -> Any:
        """The picture of a finished candidate, or a draft's or a preview's."""
        stretch = self._stretches(row["seed"], row["draft"])
        with self._on_schedule(row):
            stopped, clean = self._denoised(self._before(row, stretch), row)
            latents = stopped.latents if row["step"] == row["steps"] else clean
            return self._decoded(latents, row)

    def drawn_image(self, row: Mapping[str, Any]) -> Any:
        """The whole way from a drawn noise, under the arguments as they are now."""
        prompt, seeds = self._prompt.text, (row["seed"],)
        drawn = self._denoiser.draw(prompt, seeds)
        first, steps = self._denoiser.span(prompt)
        done = self._denoiser.denoise(prompt, drawn.latents, seeds, first, steps, sde=self._sde)
        return self._denoiser.decode(prompt, done.latents, seeds, steps).media[0]

    def _learn(self, seed: int, recipe: Mapping[str, Any]) -> None:
        of = recipe.get("of")
        if isinstance(of, Mapping):
            self._learn(of["seed"], of)
            recipe = {**recipe, "of": of["seed"]}
        self._recipes.setdefault(seed, recipe)

    def _on_schedule(self, row: Mapping[str, Any]) -> Any:
        """The schedule that a row's steps count by."""
        steps = _inference_steps(self._config, self._denoiser.inference_steps)
        return self._denoiser.drafting(steps if row["draft"] else None)

    def _stretches(self, seed: int, draft: bool) -> list[dict[str, Any]]:
        """The rows in which a candidate was denoised, in order."""
        return [r for r in self._rows if r["seed"] == seed and r["draft"] == draft]

    def _at(self, seed: int, step: int, draft: bool) -> Candidates:
        """A candidate at one of the steps that it was stopped at, or where it began."""
        key = (seed, step)
        if key not in self._made:
            earlier = self._origin(seed)
            for row in self._stretches(seed, draft):
                if earlier.step < row["step"] <= step:
                    earlier = self._denoised(earlier, row)[0]
            assert earlier.step == step, f"{seed} was never at step {step}"
            self._made[key] = earlier
        return self._made[key]

    def _before(self, row: Mapping[str, Any], stretches: Sequence[Mapping[str, Any]]) -> Candidates:
        """Where a row's stretch began."""
        before = [r["step"] for r in stretches if r["step"] < row["step"]]
        start = self._origin(row["seed"])
        if before and max(before) > start.step:
            start = self._at(row["seed"], max(before), row["draft"])
        return start

    def _denoised(self, start: Candidates, row: Mapping[str, Any]) -> tuple[Candidates, Any]:
        """A stretch taken by a batch of copies, as large as the recorded one."""
        n = row["batch_size"]
        copies = noised(start).select([0] * n)
        done = self._denoiser.denoise(
            self._prompt.text,
            copies.latents,
            copies.seeds,
            start.step,
            row["step"],
            row["guidance"],
            self._sde,
        )
        scale = None if done.noise_scale is None else done.noise_scale[:1]
        moved = replace(start, latents=done.latents[:1], step=row["step"], noise_scale=scale)
        return moved, done.clean[:1]

    def _decoded(self, latents: Any, row: Mapping[str, Any]) -> Any:
        n = row["batch_size"]
        seeds = (row["seed"],) * n
        whole = latents.expand(n, *latents.shape[1:])
        return self._denoiser.decode(self._prompt.text, whole, seeds, row["steps"]).media[0]

    def _origin(self, seed: int) -> Candidates:
        """A candidate as it was made, before anything was denoised."""
        if seed not in self._origins:
            self._origins[seed] = self._made_anew(seed, self._recipes[seed])
        return self._origins[seed]

    def _made_anew(self, seed: int, recipe: Mapping[str, Any]) -> Candidates:
        make = {
            "draw": self._drawn,
            "perturb": self._perturbed,
            "renoise": self._renoised,
            "fork": self._forked,
            "place": self._placed,
        }[recipe["op"]]
        return make(seed, recipe)

    def _drawn(self, seed: int, recipe: Mapping[str, Any]) -> Candidates:
        drawn = self._denoiser.draw(self._prompt.text, (seed,))
        return Candidates(drawn.latents, drawn.step, (seed,))

    def _parent(self, recipe: Mapping[str, Any]) -> Candidates:
        of, at = recipe["of"], recipe["at"]
        origin = self._origin(of)
        return origin if origin.step == at else self._at(of, at, False)

    def _perturbed(self, seed: int, recipe: Mapping[str, Any]) -> Candidates:
        parent = noised(self._parent(recipe))
        noise = unit_noise((seed,), parent.latents)
        drawn = recipe.get("drawn")  # where sampling starts from a picture
        still = None if drawn is None else self._denoiser.picture(self._prompt.text, drawn)
        moved = neighbours(parent, noise, recipe["cosine"], lambda: self._levels, still)
        return Candidates(moved, parent.step, (seed,))

    def _renoised(self, seed: int, recipe: Mapping[str, Any]) -> Candidates:
        parent = noised(self._parent(recipe))
        now, then = self._levels[parent.step], self._levels[recipe["to"]]
        noise = unit_noise((seed,), parent.latents)
        return Candidates(renoised(parent.latents, noise, now, then), recipe["to"], (seed,))

    def _forked(self, seed: int, recipe: Mapping[str, Any]) -> Candidates:
        return replace(self._parent(recipe), seeds=(seed,))

    def _placed(self, seed: int, recipe: Mapping[str, Any]) -> Candidates:
        """Latents of a search's own making: the search is run again on the recorded scores."""
        if self._config.verifier_args.make().pooled:
            raise UserError(
                "A search that makes noises of its own cannot be followed under a verifier whose"
                " scores depend on the pool: repeat the run from its config.json."
            )
        config, prompt = self._config, self._prompt
        space = LatentSpace(
            self._denoiser, prompt.text, config.seed, prompt.occurrence, self._engine.batch_size
        )
        answers = _Recorded(self._rows, seed, self._gradient)
        ledger = Ledger(config.budget.build())
        try:
            for _ in play(config.search_args.build(), space, answers, ledger, config.rounds):
                pass
        except Found as found:
            return found.candidates
        raise UserError(f"The search did not come to the noise of seed {seed} again.")

    def _gradient(self, rollout: Rollout) -> Tensor:
        """What no row records, and is worked out again."""
        asked, verifier = rollout.candidates, self._engine.verifier
        found = []
        for a, b in spans(len(asked), self._engine.batch_size):
            part = asked.select(range(a, b))
            done = climbed(
                self._denoiser,
                lambda pixels: verifier.score_pixels(pixels, self._prompt.text),
                self._prompt.text,
                noised(part).latents,
                part.seeds,
                part.step,
                rollout.until,
                rollout.until,
                rollout.guidance,
                self._sde,
            )
            found.append(done.gradient)
        return torch.cat(found)


class _Recorded:
    """Answers a search's rollouts with the scores in the rows, until a seed is asked for."""

    def __init__(
        self, rows: list[dict[str, Any]], seed: int, gradient: Callable[[Rollout], Tensor]
    ) -> None:
        self._rows = rows
        self._seed = seed
        self._gradient = gradient
        self._next = 0
        self._scores = {row["id"]: _value(row) for row in rows}

    def __call__(self, rollout: Rollout) -> tuple[Scored, Cost]:
        asked = rollout.candidates
        if self._seed in asked.seeds:
            raise Found(asked.select([asked.seeds.index(self._seed)]))
        rows = self._rows[self._next : self._next + len(asked)]
        self._next += len(asked)
        if tuple(row["seed"] for row in rows) != asked.seeds:
            raise UserError("The search asks for other candidates than the run recorded.")
        scored = Scored(
            start=asked,
            candidates=replace(asked, step=rollout.until),  # a place is found before they matter
            scores=torch.tensor([_value(row) for row in rows], dtype=torch.float64),
            ids=tuple(row["id"] for row in rows),
            rival_scores=torch.tensor(
                [self._scores[i] for i in rollout.rivals], dtype=torch.float64
            ),
            gradient=self._gradient(rollout) if rollout.gradient else None,
        )
        each = sum(row["nfe"] for row in rows)
        asked_for = len(asked) if rollout.score else 0
        return scored, Cost(nfe=each, rows=sum(r["rows"] for r in rows), verifications=asked_for)


def _value(row: Mapping[str, Any]) -> float:
    return float("nan") if row["score"] is None else row["score"]


def _inference_steps(config: ExperimentConfig, whole: int) -> int:
    """Inference steps of the drafts, where the search makes any."""
    share = getattr(config.search_args.build(), "share", 1.0)
    return draft_steps(whole, share)
