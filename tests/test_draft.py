"""Drafts: what is explored cheaply, and what is rendered of it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch

from pipelines.denoiser import Denoiser
from pipelines.space import LatentSpace
from search.core import Rollout
from search.ledger import Budget, Ledger
from search.methods.draft import Draft
from search.methods.random import Random
from search.play import play
from tests.families import FAMILIES
from tests.test_run import ran, rows_of
from tests.toy import ToyEngine, ToySpace
from utils import UserError

PROMPT = "a photo"


def test_the_best_drafts_noises_are_rendered_on_the_whole_schedule() -> None:
    space = ToySpace()
    ledger = Ledger(Budget(nfe=200))
    answers = list(play(Draft(share=0.5, keep=3), space, ToyEngine(space), ledger))
    drafts, (last,) = answers[:-1], answers[-1:]
    assert ledger.spent.nfe == 200
    assert all(a.rollout.draft == a.rollout.until == 5 for a in drafts)
    assert sum(len(a.scored.ids) for a in drafts) == (200 - 3 * 10) // 5
    assert (last.rollout.draft, last.rollout.until, len(last.scored.ids)) == (0, 10, 3)
    pool = [
        (float(score), seed, latents)
        for a in drafts
        for score, seed, latents in zip(
            a.scored.scores, a.rollout.candidates.seeds, a.rollout.candidates.latents, strict=True
        )
    ]
    best = sorted(pool, key=lambda one: -one[0])[:3]
    assert last.rollout.candidates.seeds == tuple(seed for _, seed, _ in best)
    assert torch.equal(last.rollout.candidates.latents, torch.stack([x for *_, x in best]))
    assert len({p for (p,) in last.rollout.candidates.parents}) == 3


def test_drafts_that_are_the_whole_images_choose_what_best_of_n_does() -> None:
    """A draft of nearly all steps on a long schedule: rendering the best changes nothing."""
    space, plain = ToySpace(steps=200), ToySpace(steps=200)
    search = Draft({"search_method": "random", "search_rounds": 2}, share=0.99, keep=1)
    *_, last = play(search, space, ToyEngine(space), Ledger(Budget()), rounds=1)
    *_, a, b = play(Random(), plain, ToyEngine(plain), Ledger(Budget()), rounds=2)
    best = max([*a.scored.scores.tolist(), *b.scored.scores.tolist()])
    assert last.scored.best == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize(("nfe", "keep", "explore"), [(20, 1, 0), (35, 1, 0), (40, 1, 20),
                                                      (160, 4, 80), (320, 4, 240)])  # fmt: skip
def test_a_budget_is_shared_out(nfe: int, keep: int, explore: int) -> None:
    fitted = Draft().sized(20, nfe)
    assert (fitted.keep, fitted.explore) == (keep, explore)


def test_a_limit_of_its_own_is_not_raised_by_the_budget() -> None:
    assert Draft(explore=40).sized(20, 320).explore == 40
    assert Draft(explore=0).sized(20, 320).explore == 0
    assert Draft(explore=400).sized(20, 320).explore == 240


def test_a_search_that_does_more_than_choose_a_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="'halving' does more than choose"):
        Draft({"search_method": "halving"})
    with pytest.raises(UserError, match="no option 'pol'"):
        Draft({"search_method": "random", "pol": "nested"})


@pytest.mark.parametrize("family", ["sd15", "flux", "pixart"])
def test_a_drafted_space_draws_the_same_noises_for_fewer_steps(family: str) -> None:
    made = FAMILIES[family]
    denoiser = Denoiser(made.build(), made.call_args)
    space = LatentSpace(denoiser, PROMPT)
    whole = LatentSpace(denoiser, PROMPT).draw(2)
    cheap = space.drafted(0.5)
    assert cheap.steps < space.steps
    drawn = cheap.draw(2)
    exact = space.exact(drawn, cheap.steps)
    assert drawn.seeds == whole.seeds
    assert torch.allclose(exact.latents, whole.latents, rtol=1e-5)
    assert torch.allclose(cheap.spatial(drawn.latents), space.spatial(whole.latents), atol=1e-5)
    assert space.draw(1).seeds[0] not in drawn.seeds  # one count of seeds for both


def test_drafts_of_one_prompt_do_not_shorten_those_of_another() -> None:
    made = FAMILIES["sd15"]
    denoiser = Denoiser(made.build(), made.call_args)
    space, entered = LatentSpace(denoiser, PROMPT), threading.Event()
    expected = space.drafted(0.5).steps

    def draft() -> None:
        with denoiser.drafting(1):
            entered.set()
            time.sleep(0.2)

    other = threading.Thread(target=draft)
    other.start()
    assert entered.wait(60)
    assert space.drafted(0.5).steps == expected > 1
    other.join()


def test_pictures_cannot_be_drafted() -> None:
    made = FAMILIES["sd15_img2img"]
    space = LatentSpace(Denoiser(made.build(), made.call_args), PROMPT)
    with pytest.raises(UserError, match="starts from a picture cannot be drafted"):
        space.drafted(0.5)


def test_drafts_are_recorded_and_never_win(tmp_path: Path) -> None:
    search = {"search_method": "draft", "keep": 2, "search_rounds": 1,
              "inner": {"search_method": "random", "search_rounds": 2}}  # fmt: skip
    call = {"num_inference_steps": 4, "height": 32, "width": 32}
    folder = ran(tmp_path, search_args=search, pipeline_call_args=call)
    rows = rows_of(folder)
    assert [(row["draft"], row["step"], row["steps"], row["nfe"]) for row in rows] == (
        [(True, 2, 2, 2)] * 6 + [(False, 4, 4, 4)] * 2
    )
    assert [bool(row["path"]) for row in rows] == [False] * 6 + [True] * 2
    best = sorted(rows[:6], key=lambda row: -row["score"])[:2]
    assert [row["parents"] for row in rows[6:]] == [[row["id"]] for row in best]
    assert [row["seed"] for row in rows[6:]] == [row["seed"] for row in best]


def test_the_drafts_wishes_are_the_inner_searchs() -> None:
    flow = Draft({"search_method": "random"}, explore=100).flow(ToySpace())
    wish = next(flow)
    assert isinstance(wish, Rollout) and (len(wish.candidates), wish.draft, wish.round) == (2, 5, 1)
