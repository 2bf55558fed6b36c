"""Diffusion tree search: how the tree grows, what its values are, and the law it draws from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from search.core import Rollout, Scored
from search.ledger import Budget, Ledger, nfe_each
from search.methods.random import Random
from search.methods.tree import Node, Tree
from search.play import play
from tests.test_search_methods import Answers
from tests.toy import ToyEngine, ToySpace, noised

NAN = math.nan


@dataclass
class Linear(ToyEngine):
    """One Gaussian, and a score linear in the image."""

    centres = torch.tensor([[0.5, -0.3]], dtype=torch.float64)
    spread = 0.5

    def judged(self, clean: Tensor) -> Tensor:
        return clean[:, 0]


def grown(
    search: Tree, images: int, engine: ToyEngine, log: list[tuple[Rollout, Scored]] | None = None
) -> Node:
    """The tree when this many images are finished."""
    root, finished = Node(), 0
    flow = search.growing(engine.space, root)
    wish = next(flow)
    while finished < images:
        finished += len(wish.candidates) if wish.score else 0
        scored, _ = engine(wish)
        if log is not None:
            log.append((wish, scored))
        wish = flow.send(scored)
    return root


def stochastic(seed: int = 0, kind: type[ToyEngine] = ToyEngine) -> ToyEngine:
    return kind(ToySpace(seed=seed), stochastic=True)


def nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from nodes(child)


def wishes(search: Tree, steps: int = 10) -> list[Rollout]:
    flow, answer = search.flow(ToySpace(steps)), Answers()
    asked = []
    wish = next(flow, None)
    while wish is not None:
        asked.append(wish)
        try:
            wish = flow.send(answer(wish, [0.1 * i for i in range(len(wish.candidates))]))
        except StopIteration:
            wish = None
    return asked


@pytest.mark.parametrize("greedy", [True, False])
def test_branching_at_the_root_alone_is_best_of_n_bit_for_bit(greedy: bool) -> None:
    log: list[tuple[Rollout, Scored]] = []
    grown(Tree(depths=1, greedy=greedy, parallel=6), 18, stochastic(), log)
    same = stochastic()
    plain, _ = same(Rollout(same.space.draw(18), until=10))
    assert [len(wish.candidates) for wish, _ in log] == [6, 6, 6]
    assert [s for wish, _ in log for s in wish.candidates.seeds] == list(plain.start.seeds)
    ends = torch.cat([scored.candidates.latents for _, scored in log])
    assert torch.equal(ends, plain.candidates.latents)
    assert torch.equal(torch.cat([scored.scores for _, scored in log]), plain.scores)


def test_a_path_leaves_a_node_at_every_level_and_others_join_it_there() -> None:
    flow, answer = Tree(parallel=2, exploration=0.0).flow(ToySpace()), Answers()
    wish = next(flow)
    first = []
    for scores in [[NAN, NAN]] * 3 + [[1.0, 2.0]]:
        first.append((len(wish.candidates), wish.candidates.step, wish.until, wish.score))
        wish = flow.send(answer(wish, scores))
    assert first == [(2, 0, 2, False), (2, 2, 5, False), (2, 5, 8, False), (2, 8, 10, True)]
    # After two visits the root has no room for a third noise. The better one is visited twice:
    # once on the way to its last state, then it has room for a child of its own.
    second = []
    for scores in [[NAN], [NAN], [3.0, 4.0]]:
        second.append((wish.candidates.parents, wish.candidates.step, wish.until, wish.rivals))
        wish = flow.send(answer(wish, scores))
    assert second == [
        (((1,),), 2, 5, ()),
        (((8,),), 5, 8, ()),
        (((9,), (5,)), 8, 10, (6, 7)),
    ]
    assert wish.round == 3


def test_branches_start_from_the_very_state_of_their_node() -> None:
    engine, log = stochastic(), []
    root = grown(Tree(), 60, engine, log)
    states = [node.state for node in nodes(root) if node.state is not None]
    came = {(s, wish.until): row for wish, sc in log for s, row in _rows(wish, sc)}
    for state in states:
        assert torch.equal(came[state.seeds[0], state.step], state.latents[0])
    for wish, _ in log:
        before = {tuple(s.latents[0].tolist()) for s in states if s.step == wish.candidates.step}
        if wish.candidates.step:  # all that a wish starts from stands in the tree
            assert {tuple(row.tolist()) for row in wish.candidates.latents} <= before
    shared = [node for node in nodes(root) if node.state is not None and len(node.children) > 1]
    for node in shared:  # and children of one state part at once
        following = [child.state for child in node.children if child.state is not None]
        ends = {tuple(noised(s).latents[0].tolist()) for s in following}
        assert len(ends) == len(following)
    assert {node.state.step for node in shared if node.state} == {2, 5, 8}


def _rows(wish: Rollout, scored: Scored) -> list[tuple[int, Tensor]]:
    return list(zip(wish.candidates.seeds, scored.candidates.latents, strict=True))


@pytest.mark.parametrize("greedy", [True, False])
def test_children_are_no_more_than_visits_allow(greedy: bool) -> None:
    search = Tree(greedy=greedy, parallel=1, widening=1.5, widening_power=0.6)
    root = grown(search, 150, stochastic())
    inner = [n for n in nodes(root) if n.children and n.children[0].state is not None]
    assert all(len(n.children) < 1.5 * n.visits**0.6 + 1 for n in inner)
    begun = sum(n.opened - len(n.children) for n in nodes(root))
    assert begun == 1  # the path that is asked for next
    if greedy:  # no visit without a new image below
        assert root.visits == 150 + begun
    else:
        assert root.visits > 150 + begun


def test_values_are_soft_means_of_the_images_below() -> None:
    def soft(node: Node, strength: float) -> float:
        if not node.children:
            return node.value
        below = torch.tensor([soft(child, strength) for child in node.children])
        mean = (strength * below.double()).exp().mean().log() / strength
        assert float(mean) == pytest.approx(node.value)
        return node.value

    root = grown(Tree(strength=2.0, normalise=False), 80, stochastic())
    soft(root, 2.0)
    images = [n.value for n in nodes(root) if not n.children]
    assert len(images) == 80
    measured = grown(Tree(), 80, stochastic())
    unit = torch.tensor([n.value for n in nodes(measured) if not n.children]).double()
    assert (float(unit.mean()), float(unit.std())) == pytest.approx((0, 1), abs=1e-6)
    assert (
        root.back_up(1e-6)
        < root.back_up(2.0)
        < root.back_up(1e3)
        == pytest.approx(max(images), abs=0.01)
    )


def test_values_follow_todays_scores() -> None:
    root, answer = Node(), Answers()
    flow = Tree(depths=1, parallel=2, normalise=False).growing(ToySpace(), root)
    wish = flow.send(answer(next(flow), [1.0, 2.0]))
    answer.scores[:2] = [7.0, 5.0]
    flow.send(answer(wish, [6.0, 4.0]))
    assert [image.value for image in root.children] == [7.0, 5.0, 6.0, 4.0]


def test_an_image_without_a_score_says_nothing_of_its_states() -> None:
    search = Tree(depths=2, parallel=2, normalise=False)
    root, answer = Node(), Answers()
    flow = search.growing(ToySpace(), root)
    wish = flow.send(answer(next(flow), [NAN, NAN]))
    wish = flow.send(answer(wish, [NAN, -3.0]))
    assert math.isnan(root.children[0].value)
    assert (root.children[1].value, root.value) == (-3.0, -3.0)
    assert wish.candidates.parents == ((1,), (1,))  # both go on from the state with a score


def test_exploration_leads_away_from_what_was_visited_often() -> None:
    def shares(exploration: float) -> float:
        root = grown(Tree(exploration=exploration, depths=2, widening=3.0), 120, stochastic())
        visits = [child.visits for child in root.children]
        return max(visits) / sum(visits)

    assert shares(0.0) > 2 * shares(100.0)


def test_draws_end_in_a_new_image_however_slowly_a_tree_widens() -> None:
    root = grown(Tree(greedy=False, widening_power=0.001), 40, stochastic())
    assert sum(not n.children for n in nodes(root)) == 40


def variance(space: ToySpace, spread: float) -> float:
    """Of the images, in closed form: for one Gaussian every step is linear in the point.

    About the mean, the clean estimate is k x and the noise's is (1 - (1 - s) k) x / s.
    """
    total = 1.0
    levels = space.sigmas.tolist()
    for s, t in pairwise(levels):
        k = (1 - s) * spread**2 / ((1 - s) ** 2 * spread**2 + s**2)
        scale = t * math.sqrt(max(0.0, 1 - ((1 - s) * t / ((1 - t) * s)) ** 2)) if t else 0.0
        factor = (1 - t) * k + math.sqrt(t**2 - scale**2) * (1 - (1 - s) * k) / s
        total = factor**2 * total + scale**2
    return total


def drawn_mean(node: Node, strength: float) -> float:
    """The mean score of the images that the tree would draw."""
    if not node.children:
        return node.value
    weights = torch.tensor([strength * child.value for child in node.children]).double().softmax(0)
    means = [drawn_mean(child, strength) for child in node.children]
    return sum(w * m for w, m in zip(weights.tolist(), means, strict=True))


VARIANCE = variance(ToySpace(), Linear.spread)
STRENGTH = 1 / math.sqrt(VARIANCE)  # tilts the mean by one standard deviation
TILTED = float(Linear.centres[0, 0]) + STRENGTH * VARIANCE


def sampler(**options: float) -> Tree:
    return Tree(greedy=False, normalise=False, strength=STRENGTH, **options)  # type: ignore[arg-type]


def test_the_closed_form_is_the_samplers_law() -> None:
    engine = stochastic(kind=Linear)
    scored, _ = engine(Rollout(engine.space.draw(4000), until=10))
    x = scored.scores
    assert abs(float(x.mean()) - 0.5) < 4 * math.sqrt(VARIANCE / 4000)
    assert abs(float(x.var()) / VARIANCE - 1) < 4 * math.sqrt(2 / 4000)


def test_draws_of_fresh_paths_have_the_tilted_mean() -> None:
    """N(c, v) times exp(a x) is N(c + a v, v).

    Self-normalised weights w = exp(a x) have asymptotic error E[w^2 (x - m)^2] / E[w]^2 / n, and
    w^2 tilts by 2 a: that is exp(a^2 v) (v + (a v)^2) / n, which for a = 1 / sqrt(v) is 2 e v / n.
    """
    n = 600
    root = grown(sampler(depths=1, parallel=100), n, stochastic(kind=Linear))
    error = math.sqrt(2 * math.e * VARIANCE / n)
    assert 4 * error < 0.4 * (TILTED - 0.5)
    assert abs(drawn_mean(root, STRENGTH) - TILTED) < 4 * error


def test_draws_of_a_tree_come_to_the_tilted_mean() -> None:
    """Over eight trees, within four standard errors of their mean, less than a third of the tilt.

    Widening slowly, so that states are visited often: one that began badly is visited little, and
    keeps a value that is too low until it is.
    """
    search = sampler(depths=2, widening=1.0, widening_power=0.35, parallel=20)
    means = [drawn_mean(grown(search, 300, stochastic(s, Linear)), STRENGTH) for s in range(8)]
    mean, spread = float(torch.tensor(means).mean()), float(torch.tensor(means).std())
    error = spread / math.sqrt(8)
    assert 4 * error < (TILTED - 0.5) / 3
    assert abs(mean - TILTED) < 4 * error


@pytest.mark.parametrize("limit", [10, 33, 57, 200, 641])
@pytest.mark.parametrize("options", [{}, {"greedy": False}, {"depths": 1}, {"depths": 9}])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_fitted_to_a_budget_every_path_is_finished(steps, options, limit) -> None:  # type: ignore[no-untyped-def]
    search = Tree(**options).sized(steps, limit)
    asked = wishes(search, steps)
    spent = sum(nfe_each(wish) * len(wish.candidates) for wish in asked)
    cheapest = min(wish.until - wish.candidates.step for wish in asked if wish.score)
    assert limit - cheapest < spent <= limit
    assert asked[-1].until == steps


def test_a_small_budget_grows_fewer_paths_at_once() -> None:
    assert [Tree().sized(10, nfe).parallel for nfe in (5, 40, 80, 1000)] == [1, 1, 2, 4]
    assert Tree(nfe=50).sized(10, 400).nfe == 50
    assert Tree(nfe=50).sized(10, 40).nfe == 40


@pytest.mark.slow
def test_it_beats_best_of_n_on_a_smooth_score() -> None:
    """Minus the distance to a point off the centre of one Gaussian, 8 dimensions, 40 images."""

    def best(search, seed: int) -> float:  # type: ignore[no-untyped-def]
        space = ToySpace(seed=seed, dim=8)
        engine = ToyEngine(space, stochastic=True)
        engine.centres = torch.zeros(1, 8, dtype=torch.float64)
        engine.spread, engine.target = 0.5, torch.full((8,), 0.5, dtype=torch.float64)
        answers = play(search, space, engine, Ledger(Budget(nfe=400)))
        return max(a.scored.best for a in answers if a.rollout.until == space.steps)

    gains = torch.tensor([best(Tree(), s) - best(Random(), s) for s in range(20)])
    assert float(gains.mean()) > 2 * float(gains.std()) / math.sqrt(20)


@pytest.mark.parametrize(
    "options",
    [
        {"depths": 0},
        {"parallel": 0},
        {"strength": 0.0},
        {"strength": NAN},
        {"exploration": -1.0},
        {"widening": 0.0},
        {"widening_power": 0.0},
        {"widening_power": 1.5},
        {"nfe": 0},
    ],
)
def test_wrong_hyperparameters_are_refused(options) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=next(iter(options))):
        Tree(**options)
