"""CoDe against greedy SVDD in blocks, which it is, and against best of N, which it comes from."""

from __future__ import annotations

import pytest
import torch

from search.core import Rollout
from search.methods.code import Code
from search.methods.svdd import Svdd
from tests.test_search_methods import Answers
from tests.test_svdd import finished
from tests.toy import ToyEngine, ToySpace


@pytest.mark.parametrize("block", [1, 3, 5])
def test_blocks_of_svdd_choosing_greedily(block: int) -> None:
    one, two = (
        finished(search, ToyEngine(ToySpace(seed=6), stochastic=True))
        for search in (Code(block_size=block), Svdd(branches=5, every=block))
    )
    assert [a.start.seeds for a in one] == [a.start.seeds for a in two]
    assert torch.equal(one[-1].candidates.latents, two[-1].candidates.latents)


def test_one_block_to_the_end_is_best_of_n_from_one_state() -> None:
    code = ToyEngine(ToySpace(seed=7), stochastic=True)
    lead, last = finished(Code(n_samples=6, block_size=99, chains=1, check_from=0.5), code)
    plain = ToyEngine(ToySpace(seed=7), stochastic=True)
    state, _ = plain(Rollout(plain.space.draw(1), until=5))
    copies = plain.space.fork(state.candidates, [0] * 5)
    expected, _ = plain(Rollout(state.candidates + copies, until=10))
    assert torch.equal(lead.candidates.latents, state.candidates.latents)
    assert torch.equal(last.candidates.latents, expected.candidates.latents)
    assert code.rows == 5 + 6 * 5


def test_blocks_end_where_the_paper_ends_them() -> None:
    flow, answer = Code(chains=1).flow(ToySpace(steps=24)), Answers()
    asked = [next(flow)]
    for scores in ([0.0], *([[0.0, 0.1, 0.4, 0.2, 0.3]] * 3)):
        asked.append(flow.send(answer(asked[-1], scores)))
    assert [(a.candidates.step, a.until) for a in asked] == [
        (0, 6), (6, 11), (11, 16), (16, 21), (21, 24)
    ]  # fmt: skip
    assert asked[2].candidates.parents == ((3,),) * 5
    assert [a.score for a in asked] == [False, True, True, True, True]


def test_branching_from_the_start_begins_where_copies_first_part() -> None:
    """All copies of one noise share their first step, so it is taken once."""
    engine = ToyEngine(ToySpace(), stochastic=True)
    answers = finished(Code(check_from=0.0, chains=1), engine)
    assert [a.candidates.step for a in answers] == [1, 6, 10]
    assert len(answers[1].scores.unique()) == 5


def test_a_budget_decides_over_the_chains() -> None:
    fitted = Code().sized(10, 200)
    assert (fitted.chains, fitted.n_samples, fitted.block_size) == (4, 5, 5)
    small = Code().sized(10, 30)
    assert (small.chains, small.n_samples) == (1, 3)


def test_choosing_in_blocks_beats_as_many_plain_samples() -> None:
    """10 pairs of chains against as many calls' worth of plain samples, 30 prompts."""

    def best(search, seed: int) -> float:  # type: ignore[no-untyped-def]
        engine = ToyEngine(ToySpace(seed=seed), stochastic=True)
        return finished(search.sized(10, 84), engine)[-1].best

    ours = sum(best(Code(block_size=2), seed) for seed in range(30))
    plain = sum(best(Svdd(branches=1), seed) for seed in range(30))
    assert ours > plain


@pytest.mark.parametrize(
    "options", [{"n_samples": 0}, {"block_size": 0}, {"chains": 0}, {"check_from": -1.0}]
)
def test_wrong_hyperparameters_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Code(**options)  # type: ignore[arg-type]
