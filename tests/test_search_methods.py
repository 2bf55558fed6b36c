"""Each search stepped by hand: what it wishes for, given what it was answered."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from search.core import Candidates, Rollout, Scored
from search.ledger import Budget, Ledger
from search.methods.random import Random
from search.methods.zero_order import ZeroOrder
from search.play import play
from search.resampling import on_shell
from tests.toy import ToyEngine, ToySpace


class Answers:
    """Answers wishes with scores handed in, as the driver would."""

    def __init__(self) -> None:
        self.scores: list[float] = []

    def __call__(self, wish: Rollout, scores: list[float]) -> Scored:
        ids = tuple(range(len(self.scores), len(self.scores) + len(scores)))
        self.scores += scores
        own = replace(wish.candidates, parents=tuple((i,) for i in ids))
        return Scored(
            start=own,
            candidates=replace(own, step=wish.until),
            scores=torch.tensor(scores, dtype=torch.float64),
            ids=ids,
            rival_scores=torch.tensor([self.scores[i] for i in wish.rivals]).double(),
        )


def test_fresh_pools_double() -> None:
    flow, answer = Random().flow(ToySpace()), Answers()
    wish = next(flow)
    sizes = []
    for _ in range(4):
        sizes.append((wish.round, len(wish.candidates), wish.rivals))
        wish = flow.send(answer(wish, [0.0] * len(wish.candidates)))
    assert sizes == [(1, 2, ()), (2, 4, ()), (3, 8, ()), (4, 16, ())]


def test_nested_pools_double_with_half_the_images() -> None:
    flow, answer = Random(pool="nested").flow(ToySpace()), Answers()
    wish = next(flow)
    sizes = []
    for _ in range(4):
        sizes.append((len(wish.candidates), len(wish.rivals)))
        wish = flow.send(answer(wish, [0.0] * len(wish.candidates)))
    assert sizes == [(2, 0), (2, 2), (4, 4), (8, 8)]


@pytest.mark.slow
def test_a_nested_pool_of_eight_is_eight_fresh_noises_in_law() -> None:
    """300 runs each: the largest gap between the two distributions of the best score stays below
    the Kolmogorov-Smirnov bound at 1 %."""
    bests = {}
    for pool, rounds in (("fresh", 3), ("nested", 3)):
        found = []
        for seed in range(300):
            space = ToySpace(seed=seed if pool == "fresh" else 1000 + seed)
            answers = list(play(Random(pool), space, ToyEngine(space), Ledger(Budget()), rounds))
            kept = answers if pool == "nested" else answers[-1:]
            assert sum(len(a.scored.ids) for a in kept) == 8
            found.append(max(a.scored.best for a in kept))
        bests[pool] = torch.tensor(found).sort().values
    both = torch.cat([*bests.values()]).sort().values
    shares = [torch.searchsorted(b, both, right=True) / len(b) for b in bests.values()]
    gap = float((shares[0] - shares[1]).abs().max())
    assert gap < 1.63 * (2 / 300) ** 0.5


def test_zero_order_moves_to_the_best_neighbour_and_never_denoises_a_pivot_twice() -> None:
    space, answer = ToySpace(), Answers()
    flow = ZeroOrder(threshold=0.9, num_neighbors=3).flow(space)
    pivot = next(flow)
    assert len(pivot.candidates) == 1
    near = flow.send(answer(pivot, [0.5]))
    assert (len(near.candidates), near.rivals, near.round) == (3, (0,), 1)
    nearer = flow.send(answer(near, [0.1, 0.9, 0.7]))
    assert (len(nearer.candidates), nearer.rivals, nearer.round) == (3, (2,), 2)
    assert nearer.candidates.parents == ((2,),) * 3
    cosine = torch.cosine_similarity(nearer.candidates.latents, near.candidates.latents[1:2])
    assert torch.allclose(cosine, torch.full((3,), 0.9, dtype=torch.float64))


@pytest.mark.parametrize("scores", [[0.4, 0.5, 0.1], [float("nan")] * 3])
def test_a_rejected_round_restarts_from_a_fresh_pivot(scores: list[float]) -> None:
    space, answer = ToySpace(), Answers()
    flow = ZeroOrder(num_neighbors=3).flow(space)
    near = flow.send(answer(next(flow), [0.5]))
    fresh = flow.send(answer(near, scores))
    assert (len(fresh.candidates), fresh.rivals, fresh.round) == (1, (), 2)
    assert fresh.candidates.parents == ((),)


def test_a_rejected_round_can_keep_its_pivot() -> None:
    space, answer = ToySpace(), Answers()
    flow = ZeroOrder(num_neighbors=3, on_reject="resample").flow(space)
    near = flow.send(answer(next(flow), [0.5]))
    again = flow.send(answer(near, [0.4, 0.5, 0.1]))
    assert (len(again.candidates), again.rivals, again.round) == (3, (0,), 2)
    assert not torch.equal(again.candidates.latents, near.candidates.latents)


def test_an_unscored_pivot_is_left_for_any_scored_neighbour() -> None:
    space, answer = ToySpace(), Answers()
    flow = ZeroOrder(num_neighbors=2).flow(space)
    near = flow.send(answer(next(flow), [float("nan")]))
    nearer = flow.send(answer(near, [-5.0, float("nan")]))
    assert nearer.rivals == (1,)


def test_cosine_zero_is_random_search_on_the_shell() -> None:
    """With neighbours at right angles the pivot's direction is all that is lost."""
    space = ToySpace(dim=64)
    near = space.perturb(space.draw(1), 200, 0.0)
    others = torch.nn.functional.normalize(near.latents, dim=1)
    mean = (others @ others.T).fill_diagonal_(0).sum() / (200 * 199)
    assert abs(float(mean)) < 0.01  # 4 standard errors of 1/8 over 200 independent points


@pytest.mark.parametrize("options", [{"threshold": 1.1}, {"threshold": -2}, {"num_neighbors": 0}])
def test_wrong_hyperparameters_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ZeroOrder(**options)  # type: ignore[arg-type]


def test_on_shell_keeps_norm_and_cosine() -> None:
    draw = torch.Generator().manual_seed(0)
    centre = torch.randn(5, 3, 4, generator=draw)
    moved = on_shell(centre, torch.randn(5, 3, 4, generator=draw), 0.3)
    assert torch.allclose(moved.flatten(1).norm(dim=1), centre.flatten(1).norm(dim=1))
    cosine = torch.cosine_similarity(moved.flatten(1), centre.flatten(1))
    assert torch.allclose(cosine, torch.full((5,), 0.3), atol=1e-6)


def test_select_repeats_and_reorders() -> None:
    points = Candidates(torch.arange(3.0)[:, None], 2, (7, 8, 9), parents=((1,), (2,), (3,)))
    chosen = points.select(torch.tensor([2, 0, 2]))
    assert chosen.latents.flatten().tolist() == [2.0, 0.0, 2.0]
    assert (chosen.seeds, chosen.parents, chosen.step) == ((9, 7, 9), ((3,), (1,), (3,)), 2)


def test_ties_go_to_the_earlier_candidate_and_nan_comes_last() -> None:
    space, answer = ToySpace(), Answers()
    wish = Rollout(space.draw(4), until=10)
    scored = answer(wish, [float("nan"), 1.0, 2.0, 2.0])
    assert scored.order() == [2, 3, 1, 0]
    assert scored.top(2).ids == (2, 3)


def test_a_flow_that_ends_starts_again_with_fresh_noise() -> None:
    class Once:
        needs = frozenset()
        blind = True

        def sized(self, steps: int, nfe: int) -> Once:
            return self

        def flow(self, space):  # type: ignore[no-untyped-def]
            yield Rollout(space.draw(2), until=space.steps)

    space = ToySpace()
    engine = ToyEngine(space)
    answers = list(play(Once(), space, engine, Ledger(Budget(nfe=70))))
    assert [len(a.scored.ids) for a in answers] == [2, 2, 2, 1]
    assert [a.round for a in answers] == [1, 2, 3, 4]
    assert len({seed for seed, _ in engine.log}) == 7
    assert len(list(play(Once(), space, engine, Ledger(Budget())))) == 1  # no budget: once


def test_hill_climbing_beats_random_search_on_a_smooth_score() -> None:
    """Minus the angle to a hidden direction, 24 dimensions, 40 images: a landscape made for it."""

    def best(search, seed: int) -> float:  # type: ignore[no-untyped-def]
        space = ToySpace(seed=seed, dim=24)
        hidden = torch.ones(1, 24, dtype=torch.float64)

        def evaluate(wish: Rollout):  # type: ignore[no-untyped-def]
            scored, cost = engine(wish)
            scores = torch.cosine_similarity(wish.candidates.latents, hidden)
            engine.log[-len(scores) :] = list(
                zip(wish.candidates.seeds, scores.tolist(), strict=True)
            )
            return replace(scored, scores=scores), cost

        engine = ToyEngine(space)
        engine.centres = torch.zeros(1, 24, dtype=torch.float64)
        engine.target = hidden[0]
        return max(a.scored.best for a in play(search, space, evaluate, Ledger(Budget(nfe=400))))

    climbed = [best(ZeroOrder(threshold=0.8, on_reject="resample"), s) for s in range(20)]
    drawn = [best(Random(), s) for s in range(20)]
    assert sum(climbed) > 1.3 * sum(drawn)
