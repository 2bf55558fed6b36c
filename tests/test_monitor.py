"""Quality monitoring: what a check leads to, stepped by hand, and where the saved steps go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from search.core import Rollout, Scored
from search.ledger import Budget, Ledger
from search.methods.monitor import Monitor
from search.methods.random import Random
from search.play import Answer, play
from tests.test_search_methods import Answers
from tests.toy import ToyEngine, ToySpace

NAN = math.nan
BAD, FINE = 0.0, 1.0  # around a threshold of 0.5


class Steps:
    """A flow over 20 steps, checked after 5, 10 and 15, and what it was asked and answered."""

    def __init__(self, pool: int, **options) -> None:  # type: ignore[no-untyped-def]
        fixed = {"quality_threshold": 0.5, "settled_after": 9, "patience": 9}
        self.flow = Monitor(pool=pool, **{**fixed, **options}).flow(ToySpace(steps=20))
        self.answer = Answers()
        self.wish = next(self.flow)

    def send(self, *scores: float) -> Rollout:
        self.wish = self.flow.send(self.answer(self.wish, list(scores)))
        return self.wish


def asked(wish: Rollout) -> tuple[int, int, int, float, int | None]:
    at = wish.candidates.step
    return len(wish.candidates), at, wish.until, wish.guidance, wish.round


def played(search: Monitor, nfe: int, steps: int = 20, **engine) -> list[Answer]:  # type: ignore[no-untyped-def]
    space = ToySpace(steps)
    return list(play(search, space, ToyEngine(space, **engine), Ledger(Budget(nfe=nfe))))


def finished(answers: Sequence[Answer], steps: int = 20) -> list[int]:
    return [seed for a in answers if a.rollout.until == steps for seed in a.scored.start.seeds]


def test_without_a_check_it_is_best_of_n_bit_for_bit() -> None:
    space, same = ToySpace(), ToySpace()
    drawn = list(play(Random(), space, ToyEngine(space), Ledger(Budget()), rounds=2))
    search = Monitor(pool=2, check_interval=10)
    pools = list(play(search, same, ToyEngine(same), Ledger(Budget()), rounds=3))
    assert [a.round for a in pools] == [1, 2, 3]
    assert sum((a.scored.start.seeds for a in pools), ()) == sum(
        (a.scored.start.seeds for a in drawn), ()
    )
    assert torch.equal(pools[0].scored.candidates.latents, drawn[0].scored.candidates.latents)
    assert torch.equal(pools[0].scored.scores, drawn[0].scored.scores)


def test_watching_alone_changes_no_image() -> None:
    search = Monitor(pool=4, quality_threshold=-math.inf, settled_after=9)
    (*_, watched), (plain,) = played(search, 80), played(replace(search, check_interval=20), 80)
    assert watched.scored.start.seeds == plain.scored.start.seeds
    assert torch.equal(watched.scored.candidates.latents, plain.scored.candidates.latents)
    assert torch.equal(watched.scored.scores, plain.scored.scores)


@pytest.mark.parametrize(
    ("steps", "first", "checks"),
    [
        (20, 0, [5, 10, 15]),  # 5 is a quarter
        (28, 0, [10, 15, 20, 25]),
        (50, 0, [15, 20, 25, 30, 35, 40, 45]),
        (28, 8, [13, 18, 23]),  # image to image: counted from where it starts
        (5, 0, []),
        (1, 0, []),
    ],
)
def test_checks_come_every_interval_after_the_first_quarter(steps, first, checks) -> None:  # type: ignore[no-untyped-def]
    space = ToySpace(steps)
    space.first = first
    flow, answer = Monitor(pool=1, settled_after=99).flow(space), Answers()
    wish, stops = next(flow), []
    while wish.round == 1:
        stops.append(wish.until)
        wish = flow.send(answer(wish, [FINE]))
    assert stops == [*checks, steps]


def test_bad_checks_scale_guidance_up_to_a_cap_and_good_ones_leave_it() -> None:
    steps = Steps(1, action="guidance", scale_factor=1.5, max_scale=2.0)
    assert asked(steps.wish) == (1, 0, 5, 1.0, 1)
    assert asked(steps.send(BAD)) == (1, 5, 10, 1.5, 1)
    assert asked(steps.send(FINE)) == (1, 10, 15, 1.5, 1)
    assert asked(steps.send(BAD)) == (1, 15, 20, 2.0, 1)
    assert asked(steps.send(BAD)) == (1, 0, 5, 1.0, 2)  # a new pool starts anew


def test_guidance_can_be_scaled_down_as_far() -> None:
    steps = Steps(1, action="guidance", scale_factor=0.6, max_scale=2.0)
    assert steps.send(BAD).guidance == 0.6
    assert steps.send(BAD).guidance == 0.5


def test_candidates_of_unlike_guidance_go_on_apart_within_the_round() -> None:
    steps = Steps(4, action="guidance")
    one = steps.send(FINE, BAD, FINE, BAD)
    assert asked(one) == (2, 5, 10, 1.0, 1)
    assert one.candidates.parents == ((0,), (2,))
    two = steps.send(FINE, BAD)
    assert asked(two) == (2, 5, 10, 1.2, 1)
    assert two.candidates.parents == ((1,), (3,))
    three = steps.send(BAD, FINE)
    assert (asked(three), three.candidates.parents) == ((1, 10, 15, 1.0, 1), ((4,),))
    four = steps.send(FINE)  # one whose first preview was bad, and one whose second was
    assert (asked(four), four.candidates.parents) == ((2, 10, 15, 1.2, 1), ((5,), (7,)))
    five = steps.send(FINE, FINE)
    assert (asked(five), five.candidates.parents) == ((1, 10, 15, 1.2**2, 1), ((6,),))


def test_patience_is_for_bad_checks_in_a_row() -> None:
    steps = Steps(3, action="reject", patience=2)
    assert len(steps.send(BAD, BAD, FINE).candidates) == 3
    kept = steps.send(FINE, BAD, FINE)
    assert kept.candidates.parents == ((3,), (5,))
    last = steps.send(BAD, FINE)  # bad twice, but not in a row
    assert (asked(last), last.candidates.parents) == ((2, 15, 20, 1.0, 1), ((6,), (7,)))


def test_both_scales_guidance_and_then_gives_up() -> None:
    steps = Steps(2, patience=2)
    assert asked(steps.send(BAD, FINE)) == (1, 5, 10, 1.2, 1)
    assert asked(steps.send(BAD)) == (1, 5, 10, 1.0, 1)
    alone = steps.send(FINE)
    assert (asked(alone), alone.candidates.parents) == ((1, 10, 15, 1.0, 1), ((3,),))


def test_a_pool_is_never_given_up_whole() -> None:
    steps = Steps(3, action="reject", patience=1)
    best = steps.send(0.1, 0.3, NAN)  # one without a score is not given up, but is no comfort
    assert best.candidates.parents == ((1,), (2,))
    steps = Steps(3, action="reject", patience=1)
    best = steps.send(0.1, 0.3, 0.2)
    assert best.candidates.parents == ((1,),)
    assert asked(steps.send(BAD)) == (1, 10, 15, 1.0, 1)


def test_with_an_image_finished_the_rest_of_a_pool_can_be_given_up() -> None:
    steps = Steps(2, action="reject", patience=1, settled_after=1)
    settled = steps.send(FINE, BAD)
    assert (asked(settled), settled.candidates.parents) == ((1, 5, 20, 1.0, 1), ((0,),))
    assert asked(steps.send(FINE)) == (2, 0, 5, 1.0, 2)
    steps = Steps(2, action="reject", patience=2, settled_after=1)
    steps.send(FINE, BAD)
    assert asked(steps.send(FINE)) == (1, 5, 10, 1.0, 1)
    assert asked(steps.send(BAD)) == (2, 0, 5, 1.0, 2)


def test_one_that_stays_good_goes_straight_to_the_end() -> None:
    steps = Steps(2, action="guidance", settled_after=2)
    steps.send(FINE, BAD)
    other = steps.send(FINE)
    assert asked(other) == (1, 5, 10, 1.2, 1)
    end = steps.send(FINE)
    assert (asked(end), end.candidates.parents) == ((1, 10, 20, 1.0, 1), ((2,),))
    assert asked(steps.send(FINE)) == (1, 10, 15, 1.2, 1)
    assert asked(steps.send(FINE)) == (1, 15, 20, 1.2, 1)  # settled, but its bad check costs it


def test_unset_the_threshold_is_the_median_at_the_step_so_far() -> None:
    steps = Steps(3, action="reject", patience=1, quality_threshold=None, check_interval=10)
    assert steps.wish.rivals == ()
    assert steps.send(0.3, 0.2, 0.1).candidates.parents == ((0,), (1,))  # at the median is good
    pool = steps.send(FINE, FINE)
    assert (asked(pool), pool.rivals) == ((3, 0, 10, 1.0, 2), (0, 1, 2))
    # the median of 0.3 0.2 0.1 and 0.25 0.4 nan is 0.25; a missing score is not counted
    assert steps.send(0.25, NAN, 0.4).candidates.parents == ((5,), (6,), (7,))
    assert steps.send(FINE, FINE, FINE).rivals == (0, 1, 2, 5, 6, 7)


def test_scores_are_compared_as_they_stand_today() -> None:
    """Under a verifier that ranks a pool, earlier values move as candidates arrive."""

    class Moving(Answers):
        def __call__(self, wish: Rollout, scores: list[float]) -> Scored:
            return replace(scored := super().__call__(wish, scores),
                           rival_scores=scored.rival_scores - 10)  # fmt: skip

    steps = Steps(2, action="reject", patience=1, quality_threshold=None, check_interval=10)
    steps.answer = Moving()
    steps.send(5.0, 6.0)
    steps.send(FINE)
    # of -5, -4 and today's -3, -2 the median is -3.5: both new ones are good
    assert len(steps.send(-3.0, -2.0).candidates) == 2


def test_a_missing_score_is_neither_good_nor_bad() -> None:
    steps = Steps(2, patience=1, settled_after=2)
    assert asked(steps.send(FINE, NAN)) == (2, 5, 10, 1.0, 1)
    settled = steps.send(FINE, NAN)
    assert settled.until == 20
    assert asked(steps.send(FINE)) == (1, 10, 15, 1.0, 1)


@pytest.mark.parametrize("action", ["guidance", "reject", "both"])
def test_with_no_scores_at_all_every_candidate_is_finished(action: str) -> None:
    answers = played(Monitor(action=action, patience=1), 160, nan_every=1)  # type: ignore[arg-type]
    assert len(finished(answers)) == 8
    assert {a.rollout.guidance for a in answers} == {1.0}


@pytest.mark.parametrize("limit", [20, 99, 400, 1003])
def test_saved_steps_pay_for_new_candidates_and_all_begun_are_settled(limit: int) -> None:
    search = Monitor(action="reject", patience=1)
    answers = played(search, limit)
    drawn = {s for a in answers if a.rollout.candidates.step == 0 for s in a.scored.start.seeds}
    assert len(drawn) == limit // 20 or len(drawn) > limit // 20 >= 4
    given_up = drawn - set(finished(answers))
    cut = {
        seed
        for a in answers
        if a.rollout.until < 20
        for seed, score in zip(a.scored.start.seeds, a.scored.scores.tolist(), strict=True)
        if score < max(a.scored.scores.tolist())
    }
    assert given_up <= cut  # none was left on the way because the budget had run out
    assert limit - 20 < sum(a.cost.nfe for a in answers) <= limit


def test_a_candidates_history_is_followed_by_its_parents() -> None:
    answers = played(Monitor(), 400)
    rows = {
        i: (a.rollout.until, a.rollout.guidance, parents)
        for a in answers
        for i, parents in zip(a.scored.ids, a.rollout.candidates.parents, strict=True)
    }
    histories = []
    for last in (i for i, (until, _, _) in rows.items() if until == 20):
        history = [rows[last]]
        while history[0][2]:
            history.insert(0, rows[history[0][2][0]])
        histories.append([(until, guidance) for until, guidance, _ in history])
    assert all(h[0] == (5, 1.0) and h[-1][0] == 20 for h in histories)
    assert all([u for u, _ in h] == sorted({u for u, _ in h}) for h in histories)
    factors = [[g for _, g in h] for h in histories]
    assert all(f == sorted(f) for f in factors)  # guidance only grew
    assert {1.0, 1.2} <= {g for f in factors for g in f}


def test_better_images_than_best_of_n_at_equal_cost_where_previews_tell() -> None:
    """On the toy a preview after half of the steps shows which mode a sample goes to."""

    def best(search, seed: int) -> float:  # type: ignore[no-untyped-def]
        space = ToySpace(seed=seed)
        answers = list(play(search, space, ToyEngine(space), Ledger(Budget(nfe=80))))
        return max(a.scored.best for a in answers if a.rollout.until == 10)

    watched = [best(Monitor(action="reject", patience=1), seed) for seed in range(60)]
    drawn = [best(Random(), seed) for seed in range(60)]
    assert sum(watched) > sum(drawn)


def test_it_says_whether_it_changes_guidance() -> None:
    assert Monitor().guides and Monitor(action="guidance").guides
    assert not Monitor(action="reject").guides
    answers = played(Monitor(action="reject"), 400)
    assert {a.rollout.guidance for a in answers} == {1.0}


def test_a_limit_of_its_own_is_not_raised_by_the_budget() -> None:
    assert Monitor(nfe=50).sized(10, 400).nfe == 50
    assert Monitor(nfe=50).sized(10, 40).nfe == 40
    assert next(Monitor().sized(10, 9).flow(ToySpace()), None) is None


@pytest.mark.parametrize(
    "options",
    [
        {"pool": 0},
        {"check_interval": 0},
        {"check_from": 1.5},
        {"quality_threshold": NAN},
        {"action": "wait"},
        {"scale_factor": 0.0},
        {"scale_factor": NAN},
        {"max_scale": 0.9},
        {"patience": 0},
        {"settled_after": 0},
        {"nfe": 0},
    ],
)
def test_wrong_hyperparameters_are_refused(options) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=next(iter(options))):
        Monitor(**options)
