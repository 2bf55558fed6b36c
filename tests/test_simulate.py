"""Pruning replayed on recorded scores: against enumeration, closed forms, and a real run."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiment.config import parse_config
from experiment.estimators import expected_best
from experiment.runner import run
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


@pytest.mark.slow
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


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of plain draws."""
    return ran(tmp_path_factory.mktemp("drawn"))


def ran(root: Path, **changes: Any) -> Path:
    return run(parse_config(config("flux", **changes)), str(root)).folder


def test_a_run_without_previews_says_how_to_record_some(drawn: Path) -> None:
    with pytest.raises(UserError, match="record some with"):
        simulate(drawn, "halving@0.5")


def test_best_of_n_stands_alone_for_there_is_nothing_to_compare_it_with(drawn: Path) -> None:
    said = simulate(drawn, "best")
    assert said.startswith("best on 1 of 1 prompts")
    assert "difference" not in said and "N =" not in said and "left out" not in said
    pool, _, score, *_ = said.splitlines()[-1].split()
    rows = [json.loads(line) for line in (drawn / "candidates.jsonl").read_text().splitlines()]
    assert int(pool) == len(rows)
    assert float(score) == pytest.approx(max(row["score"] for row in rows), rel=0.01)


def test_a_run_that_gave_draws_up_is_refused(tmp_path: Path) -> None:
    """Those that were finished are the better ones, and no sample of all."""
    folder = ran(tmp_path, search_args={"search_method": "halving", "pool": 4})
    for policy in ("best", "halving@0.5"):
        with pytest.raises(UserError, match=r"did not finish \d+ of its \d+ drawn noises"):
            simulate(folder, policy)


def test_candidates_made_of_others_are_no_draws(tmp_path: Path) -> None:
    folder = ran(tmp_path, search_args={"search_method": "zero-order", "search_rounds": 2})
    with pytest.raises(UserError, match="no prompt with two drawn noises"):
        simulate(folder, "best")


def test_drafts_and_what_they_chose_are_no_draws(tmp_path: Path) -> None:
    folder = ran(tmp_path, search_args={"search_method": "draft", "keep": 2})
    with pytest.raises(UserError, match="no prompt with two drawn noises"):
        simulate(folder, "best")


def test_scores_that_depend_on_the_pool_are_refused(tmp_path: Path) -> None:
    members = [{"name": "contrast"}, {"name": "shapes_oracle"}]
    folder = ran(tmp_path, verifier_args={"name": "ensemble", "verifiers": members})
    with pytest.raises(UserError, match="compares the candidates of a pool"):
        simulate(folder, "best")


def rows_of(folder: Path, drawn: Path, **change: Any) -> Path:
    """The rows of a run of draws, the second of them changed."""
    rows = [json.loads(line) for line in (drawn / "candidates.jsonl").read_text().splitlines()]
    rows[1] |= change
    folder.mkdir()
    (folder / "candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_what_is_left_out_is_counted(drawn: Path, tmp_path: Path) -> None:
    unscored = rows_of(tmp_path / "unscored", drawn, score=None, status="unscored")
    assert "left out: 1 drawn noises without a score" in simulate(unscored, "best")
    made = rows_of(tmp_path / "made", drawn, recipe={"op": "fork"}, parents=[0])
    assert "left out: 1 finished candidates that are no fresh noises" in simulate(made, "best")


def test_a_run_that_changed_the_guidance_midway_is_refused(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="changed the guidance of 1 of"):
        simulate(rows_of(tmp_path / "run", drawn, guidance=1.5), "best")


def test_steps_before_a_late_start_cost_nothing() -> None:
    """Image to image begins midway."""
    assert Policy((0.5,)).nfe(4, [15], 20, first=10) == 4 * 5 + 2 * 5


def test_several_runs_are_told_apart_and_one_that_cannot_be_used_costs_no_other(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    other = rows_of(tmp_path / "other", drawn)
    folders = [str(tmp_path / "empty"), str(drawn), str(other)]
    assert process(["--path", *folders, "--simulate", "best"]) == 2
    said = capsys.readouterr()
    assert said.out.index(str(drawn)) < said.out.index(str(other))
    assert "There are no results in" in said.err and "preview" not in said.err
