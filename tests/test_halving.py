"""Early rejection: its cuts, its survivors, and the whole funnel's cost."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from search.core import Rollout
from search.ledger import Budget, Ledger, nfe_each
from search.methods.halving import Halving
from search.methods.random import Random
from search.play import Answer, play
from tests.test_search_methods import Answers
from tests.toy import ToyEngine, ToySpace

NAN = math.nan


def one_round(search, space: ToySpace) -> list[Answer]:  # type: ignore[no-untyped-def]
    return list(play(search, space, ToyEngine(space), Ledger(Budget()), rounds=1))


@pytest.mark.parametrize("options", [{"checkpoints": ()}, {"keep": 1.0}])
def test_without_a_cut_it_is_best_of_n_bit_for_bit(options) -> None:  # type: ignore[no-untyped-def]
    space = ToySpace()
    drawn = list(play(Random(), space, ToyEngine(space), Ledger(Budget()), rounds=4))[-1]
    same = ToySpace()
    same.draw(2 + 4 + 8)  # what random search drew in its first three rounds
    (pool,) = one_round(Halving(pool=16, **options), same)
    assert pool.rollout.candidates.seeds == drawn.rollout.candidates.seeds
    assert pool.rollout.until == drawn.rollout.until
    assert torch.equal(pool.scored.candidates.latents, drawn.scored.candidates.latents)
    assert torch.equal(pool.scored.scores, drawn.scored.scores)


def test_a_survivor_ends_where_it_would_have_ended_without_previews() -> None:
    (whole,) = one_round(Halving(pool=16, checkpoints=()), ToySpace())
    preview, final = one_round(Halving(pool=16), ToySpace())
    kept = preview.scored.order()[:8]
    ends, scores = whole.scored.candidates.latents[kept], whole.scored.scores[kept]
    assert torch.allclose(final.scored.candidates.latents, ends, rtol=0, atol=1e-12)
    assert torch.allclose(final.scored.scores, scores, rtol=0, atol=1e-12)
    assert final.rollout.candidates.seeds == tuple(whole.scored.start.seeds[i] for i in kept)


def test_the_better_half_by_preview_is_finished_within_the_round() -> None:
    flow, answer = Halving(pool=5).flow(ToySpace()), Answers()
    preview = next(flow)
    assert (len(preview.candidates), preview.until, preview.score, preview.round) == (5, 5, True, 1)
    final = flow.send(answer(preview, [0.3, 0.1, 0.9, NAN, 0.9]))
    assert (final.candidates.step, final.until, final.round) == (5, 10, 1)
    assert final.candidates.parents == ((2,), (4,), (0,))  # half of 5, rounded up; ties in order
    with pytest.raises(StopIteration):
        flow.send(answer(final, [0.0] * 3))


def test_each_checkpoint_keeps_its_share_of_those_left() -> None:
    search = Halving(pool=30, checkpoints=(0.6, 0.3, 0.31), keep=0.1)
    flow, answer = search.flow(ToySpace()), Answers()
    first = next(flow)
    second = flow.send(answer(first, [float(i) for i in range(30)]))
    assert (first.until, len(first.candidates)) == (3, 30)  # 0.3 and 0.31 are one step of ten
    # the one that is left of three goes straight on: there is nothing to compare it with
    assert (second.until, second.candidates.parents) == (6, ((29,), (28,), (27,)))
    last = flow.send(answer(second, [1.0, 3.0, 2.0]))
    assert (last.until, last.candidates.parents) == (10, ((31,),))


def test_a_cut_that_keeps_everyone_asks_for_no_previews() -> None:
    for search in (Halving(pool=1), Halving(pool=3, keep=0.7)):  # 0.7 of 3 is 3, rounded up
        wish = next(search.flow(ToySpace()))
        assert (wish.candidates.step, wish.until) == (0, 10)


def test_candidates_without_a_score_are_dropped_while_others_have_one() -> None:
    flow, answer = Halving(pool=6).flow(ToySpace()), Answers()
    final = flow.send(answer(next(flow), [NAN, 0.2, NAN, NAN, 0.4, NAN]))
    assert final.candidates.parents == ((4,), (1,))


def test_with_no_scores_at_all_the_first_half_is_finished() -> None:
    flow, answer = Halving(pool=6).flow(ToySpace()), Answers()
    final = flow.send(answer(next(flow), [NAN] * 6))
    assert final.candidates.parents == ((0,), (1,), (2,))


def test_a_single_step_leaves_no_room_for_a_cut() -> None:
    wish = next(Halving(pool=4).flow(ToySpace(steps=1)))
    assert (len(wish.candidates), wish.until) == (4, 1)


def test_image_to_image_is_cut_between_its_own_first_step_and_the_last() -> None:
    class Late(ToySpace):
        def draw(self, n: int):  # type: ignore[no-untyped-def]
            drawn = super().draw(n)
            return type(drawn)(drawn.latents, self.first, drawn.seeds)

    space = Late()
    space.first = 4
    assert [(a.rollout.candidates.step, a.rollout.until) for a in one_round(Halving(), space)] == [
        (4, 7),
        (7, 10),
    ]


def cost(search: Halving, steps: int) -> int:
    """What a flow really asks for, all of its candidates having scores."""
    flow, answer = search.flow(ToySpace(steps)), Answers()
    wish: Rollout | None = next(flow)
    spent = 0
    while wish is not None:
        n = len(wish.candidates)
        spent += nfe_each(wish) * n
        try:
            wish = flow.send(answer(wish, [0.0] * n))
        except StopIteration:
            wish = None
    return spent


CUTS = [(), (0.5,), (0.25, 0.5, 0.75), (0.1, 0.9)]


@pytest.mark.parametrize(("checkpoints", "keep"), product(CUTS, [0.3, 0.5, 0.9]))
def test_fitted_to_a_budget_it_is_the_largest_that_does_not_exceed_it(checkpoints, keep) -> None:  # type: ignore[no-untyped-def]
    for steps, pool in product([1, 2, 3, 7, 20], [1, 2, 3, 10, 31]):
        search = Halving(pool, checkpoints, keep)
        exact, more = cost(search, steps), cost(Halving(pool + 1, checkpoints, keep), steps)
        assert search.sized(steps, exact).pool == pool
        assert search.sized(steps, more - 1).pool == pool
        assert Halving(99, checkpoints, keep).sized(steps, exact - 1).pool == max(1, pool - 1)


def test_a_budget_for_no_image_leaves_the_smallest_pool() -> None:
    assert Halving().sized(10, 9).pool == Halving().sized(10, 0).pool == 1


def test_half_way_previews_find_better_images_than_best_of_n_at_equal_cost() -> None:
    """On the toy a preview at half shows which mode a sample goes to, as it does for images."""

    def best(search, seed: int) -> float:  # type: ignore[no-untyped-def]
        space = ToySpace(seed=seed)
        answers = list(play(search, space, ToyEngine(space), Ledger(Budget(nfe=80))))
        return max(a.scored.best for a in answers if a.rollout.until == 10)

    halved = [best(Halving(), seed) for seed in range(60)]
    drawn = [best(Random(), seed) for seed in range(60)]
    assert sum(halved) > sum(drawn)


@pytest.mark.parametrize(
    "options",
    [
        {"pool": 0},
        {"checkpoints": (0.5, 1.0)},
        {"checkpoints": (0.0,)},
        {"keep": 0.0},
        {"keep": 1.1},
        {"keep": NAN},
    ],
)
def test_wrong_hyperparameters_are_refused(options) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=next(iter(options))):
        Halving(**options)
