"""Pruning replayed on recorded scores: against enumeration, closed forms, and a real run."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from experiment.estimators import expected_best
from experiment.simulate import Policy, Recorded, _mean_best, _played, simulate
from main import main
from process_results import main as process
from search.methods.halving import Halving
from tests.test_every_search import config
from tests.test_search_methods import Answers
from tests.toy import ToySpace
from utils import UserError

FINAL = np.array([0.3, 0.9, 0.1, 0.7, 0.5, 0.2])
PREVIEWS = np.array([[0.2, 0.4, 0.3, 0.9, 0.1, 0.0]])


def test_the_mean_over_pools_is_that_of_all_pools() -> None:
    policy = Policy((0.5,), keep=0.5)
    found = _mean_best(policy, Recorded(PREVIEWS, FINAL), 4)
    every = [
        max(FINAL[i] for i in sorted(pool, key=lambda i: -PREVIEWS[0, i])[:2])
        for pool in combinations(range(6), 4)
    ]
    assert found == pytest.approx(np.mean(every), abs=0.01)  # 2,000 pools drawn of 15


def test_previews_that_foretell_everything_keep_the_best_and_blind_ones_a_random_share() -> None:
    draw = np.random.default_rng(1)
    final = draw.random(12)
    policy = Policy((0.5,))
    knowing = _mean_best(policy, Recorded(final[None], final), 8)
    assert knowing == pytest.approx(expected_best(final, 8), abs=0.005)
    blind = np.mean(
        [_mean_best(policy, Recorded(draw.random((1, 12)), final), 8) for _ in range(60)]
    )
    assert blind == pytest.approx(expected_best(final, 4), abs=0.02)


def test_it_counts_as_the_search_does() -> None:
    """The same candidates and steps as `halving` asks for."""
    policy, space = Policy((0.3, 0.6), keep=0.5), ToySpace(steps=10)
    flow = Halving(pool=9, checkpoints=(0.3, 0.6), keep=0.5).flow(space)
    wish, spent = next(flow), 0
    answers = Answers()
    try:
        while True:
            n = len(wish.candidates)
            spent += n * (wish.until - wish.candidates.step)
            wish = flow.send(answers(wish, [float(i) for i in range(n)]))
    except StopIteration:
        pass
    assert policy.nfe(9, [3, 6], 10) == spent


def test_equal_nfe_is_compared() -> None:
    outcome = _played(Policy((0.5,)), [Recorded(PREVIEWS, FINAL)] * 3, 4, [10], 20)
    assert (outcome.nfe, outcome.images) == (60, 3.0)
    assert outcome.beside.mean == pytest.approx(expected_best(FINAL, 3))
    alone = _played(Policy(), [Recorded(PREVIEWS[:0], FINAL)] * 3, 4, [], 20)
    assert alone.gain.mean == pytest.approx(0)


@pytest.mark.parametrize(
    "text", ["halving", "halving@1.5", "halving@0.6,0.3", "worst", "halving@0.5:1"]
)
def test_what_is_no_policy_is_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match="policy"):
        Policy.parse(text)


def test_a_probes_run_is_replayed_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = config("flux", num_prompts=2, prompts="shapes/prompts.txt")
    del content["prompt"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    flags = ["--pipeline_config_path", str(tmp_path / "config.json"), "--probe", "4"]
    assert main([*flags, "--output_dir", str(tmp_path / "out")]) == 0
    (folder,) = {path.parent for path in (tmp_path / "out").rglob("probe.json")}
    capsys.readouterr()
    assert process(["--path", str(folder), "--simulate", "halving@0.5"]) == 0
    said = capsys.readouterr().out
    assert "cuts after steps 2 of 4" in said and "best of N, same NFE" in said
    assert said == simulate(folder, "halving@0.5") + "\n"


def test_a_run_without_previews_says_how_to_record_some(tmp_path: Path) -> None:
    from experiment.config import parse_config
    from experiment.runner import run

    folder = run(parse_config(config("flux")), str(tmp_path)).folder
    assert "best" in simulate(folder, "best")
    with pytest.raises(UserError, match="record some with"):
        simulate(folder, "halving@0.5")
