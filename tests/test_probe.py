"""The landscape probe: its statistics, a landscape in closed form, and whole runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from experiment.config import parse_config
from experiment.probe import set_up
from experiment.probe_advice import CUTS, TOYS, Advice, advice
from experiment.probe_landscape import Landscape, landscape
from experiment.probe_picture import picture
from experiment.probe_statistics import (
    UNKNOWN,
    Measured,
    between_share,
    pearson,
    ranks,
    spearman,
    spread,
)
from main import main
from search import SEARCHES
from search.core import Candidates, Rollout, Scored
from search.ledger import Budget, Cost, Ledger, nfe_each
from search.play import play
from search.probing import PreviewProbing, Probing
from tests.interrupted import Counting, content
from tests.still_worlds import still_config
from tests.toy import ToySpace
from utils import UserError

FLUX = "configs/shapes_flux.json"
STEPS = 5
SIZE = [
    "--set=pipeline_call_args.height=64",
    "--set=pipeline_call_args.width=64",
    f"--set=pipeline_call_args.num_inference_steps={STEPS}",
    "--num_prompts=2",
    "--probe",
    "4",
]


def correlated(rng: np.random.Generator, n: int, rho: float) -> tuple[Any, Any]:
    a, b = rng.standard_normal((2, n))
    return a, rho * a + math.sqrt(1 - rho**2) * b


def covered(estimates: Iterable[Measured], truth: float) -> float:
    return float(np.mean([m.low <= truth <= m.high for m in estimates]))


def test_correlations_within_prompts_hit_the_truth_whatever_lies_between_prompts() -> None:
    rng = np.random.default_rng(0)
    made = []
    for _ in range(1500):
        groups = []
        for scale, offset in ((1.0, 0.0), (5.0, 30.0), (0.1, -30.0), (1.0, 7.0)):
            a, b = correlated(rng, 8, 0.6)
            groups.append((scale * a + offset, scale * b + offset))
        made.append(pearson(groups))
    assert np.mean([m.value for m in made]) == pytest.approx(0.6, abs=0.01)
    assert 0.93 <= covered(made, 0.6) <= 0.975
    assert made[0].n == 32


def test_rank_correlations_hit_the_truth_and_do_not_mind_monotone_scores() -> None:
    rng = np.random.default_rng(1)
    truth = 6 / math.pi * math.asin(0.8 / 2)  # of normal pairs
    made = []
    for _ in range(1500):
        pairs = [correlated(rng, 24, 0.8) for _ in range(3)]
        made.append(spearman([(np.exp(a), b) for a, b in pairs]))
        assert made[-1] == spearman(pairs)
    assert np.mean([m.value for m in made]) == pytest.approx(truth, abs=0.02)
    assert 0.92 <= covered(made, truth) <= 0.98


def test_ranks_share_the_places_of_ties() -> None:
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_one_group_is_the_textbooks_fisher_interval() -> None:
    rng = np.random.default_rng(2)
    a, b = correlated(rng, 40, 0.5)
    found = pearson([(a, b)])
    r = float(np.corrcoef(a, b)[0, 1])
    assert found.value == pytest.approx(r, rel=0.02)
    reach = 1.96 / math.sqrt(37)
    assert math.atanh(found.high) - math.atanh(found.low) == pytest.approx(2 * reach, rel=1e-4)


def test_missing_and_constant_scores_tell_nothing() -> None:
    assert pearson([([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])]) == UNKNOWN
    assert spearman([([1.0, math.nan, 2.0], [1.0, 2.0, math.nan])]) == UNKNOWN
    assert spread([[1.0], [math.nan, 2.0]]) == UNKNOWN
    assert between_share([[1.0, 2.0]]) == UNKNOWN
    with_gap = pearson([([1.0, 2.0, math.nan, 4.0, 3.0], [1.0, 3.0, 9.0, 5.0, 2.0])])
    assert with_gap == pearson([([1.0, 2.0, 4.0, 3.0], [1.0, 3.0, 5.0, 2.0])])


def test_perfect_agreement_of_few_is_not_taken_for_certain() -> None:
    few, many = (
        spearman([(list(range(n)), list(range(n)))]) for n in (8, 200)
    )  # fmt: skip
    assert few.value == few.high == many.value == many.high == 1
    assert few.low < 0.95 < 0.999 < many.low


def test_spread_and_share_between_hit_the_truth() -> None:
    rng = np.random.default_rng(3)
    inside, shares = [], []
    for _ in range(800):
        groups = [5 + rng.normal(0, 2.0) + rng.normal(0, 1.0, 10) for _ in range(12)]
        inside.append(spread([group.tolist() for group in groups]))
        shares.append(between_share([group.tolist() for group in groups]))
    assert 0.93 <= covered(inside, 1.0) <= 0.975
    assert np.median([m.value for m in shares]) == pytest.approx(0.8, abs=0.02)
    assert 0.90 <= covered(shares, 0.8) <= 0.98
    two = between_share([[0.0, 1.0], [5.0, 6.0]])
    assert two.value > 0.9 and math.isnan(two.low)


@dataclass(frozen=True)
class ToyRow:
    """What the probe reads of a row of the records."""

    prompt_index: int
    step: int
    steps: int
    seed: int
    recipe: dict[str, Any]
    score: float


class Linear:
    """Plays a probe in many dimensions, where a score is a coordinate of the starting noise.

    Scores of two noises on a shell then correlate by their cosine. A preview is the score with a
    noise of its own that shrinks step by step.
    """

    def __init__(self, prompt: int, dim: int = 64) -> None:
        self.space = ToySpace(steps=20, seed=prompt, dim=dim)
        self.prompt = prompt
        self.ids = 0
        self.rng = np.random.default_rng(prompt)
        self.value: dict[int, float] = {}  # by seed
        self.of: dict[int, tuple[int, Tensor]] = {}  # by id: the seed and the noise it stands for
        self.rows: list[ToyRow] = []

    def __call__(self, wish: Rollout) -> tuple[Scored, Cost]:
        n = len(wish.candidates)
        ids = tuple(range(self.ids, self.ids + n))
        self.ids += n
        scores = []
        for i, number in enumerate(ids):
            scores.append(self._row(wish, wish.candidates.select([i]), number))
        done = Candidates(
            wish.candidates.latents, wish.until, wish.candidates.seeds,
            parents=wish.candidates.parents,
        )  # fmt: skip
        empty = torch.empty(0, dtype=torch.float64)
        tensor = torch.tensor(scores, dtype=torch.float64)
        return Scored(wish.candidates, done, tensor, ids, empty), Cost(nfe=nfe_each(wish) * n)

    def _row(self, wish: Rollout, one: Candidates, number: int) -> float:
        seed, noise = one.seeds[0], one.latents[0]
        self.value[seed] = 100 * self.prompt + float(noise[0])
        self.of[number] = seed, noise
        recipe: dict[str, Any] = {"op": "draw"}
        parent = self.of[one.parents[0][0]] if one.parents[0] else None
        if parent is not None and parent[0] != seed:
            # Read off the points, not off the wish.
            cosine = float(torch.nn.functional.cosine_similarity(noise, parent[1], dim=0))
            recipe = {"op": "perturb", "of": parent[0], "cosine": round(cosine, 6)}
        noisiness = 0.0 if wish.until == 20 else 2 * (1 - wish.until / 20)
        score = self.value[seed] + noisiness * float(self.rng.standard_normal())
        self.rows.append(ToyRow(self.prompt, wish.until, 20, seed, recipe, score))
        return score


@pytest.fixture(scope="module")
def toy() -> tuple[Landscape, int]:
    rows, spent = [], 0
    for prompt in range(5):
        engine = Linear(prompt)
        ledger = Ledger(Budget())
        for _ in play(PreviewProbing(noises=60), engine.space, engine, ledger, rounds=1):
            pass
        rows += engine.rows
        spent += ledger.spent.nfe
    return landscape(rows), spent


def test_on_a_linear_score_the_correlation_is_the_cosine(toy: tuple[Landscape, int]) -> None:
    found, _ = toy
    assert list(found.by_cosine) == [0.99, 0.95, 0.9, 0.7, 0.5, 0.0]
    for cosine, measured in found.by_cosine.items():
        assert measured.low <= cosine <= measured.high, (cosine, measured)
        assert measured.high - measured.low < 0.25
        assert measured.n == 300


def test_previews_correlate_as_their_noise_lets_them(toy: tuple[Landscape, int]) -> None:
    found, _ = toy
    assert list(found.previews) == [2, 5, 8, 10, 15]
    for step, measured in found.previews.items():
        rho = 1 / math.sqrt(1 + (2 * (1 - step / 20)) ** 2)
        truth = 6 / math.pi * math.asin(rho / 2)
        assert measured.low <= truth <= measured.high, (step, truth, measured)
        assert measured.n == 600


def test_spreads_within_and_between_prompts(toy: tuple[Landscape, int]) -> None:
    found, _ = toy
    assert found.within.low <= 1 <= found.within.high
    assert found.between.value > 0.99  # prompts lie 100 apart
    assert found.flat == 0 and found.prompts == 5


def test_a_probe_costs_what_it_says(toy: tuple[Landscape, int]) -> None:
    _, spent = toy
    assert spent == 5 * Probing(noises=60).images * 20 == 5 * 7 * 60 * 20


def test_sized_pays_for_noises_with_all_their_neighbours() -> None:
    assert Probing().sized(steps=20, nfe=20 * 7 * 10 + 139).noises == 10
    assert Probing().sized(steps=20, nfe=1).noises == 4


def test_a_single_step_leaves_nothing_to_preview() -> None:
    assert PreviewProbing().stops(ToySpace(steps=1)) == ()
    assert PreviewProbing().stops(ToySpace(steps=4)) == (1, 2, 3)


def m(value: float, reach: float = 0.01) -> Measured:
    return Measured(value, value - reach, value + reach, 100)


def found(near: Measured, half: Measured | None = None, **changes: Any) -> Landscape:
    parts: dict[str, Any] = {
        "by_cosine": {0.99: m(0.98), 0.95: near, 0.7: m(0.1)},
        "previews": {} if half is None else {5: m(0.2), 10: half},
        "within": m(0.5), "between": m(0.3), "steps": 20, "prompts": 4, "flat": 0,
    }  # fmt: skip
    return Landscape(**{**parts, **changes})


@pytest.mark.parametrize(
    ("near", "favours"),
    [(0.1, "random"), (0.39, "random"), (0.41, "zero-order"), (0.8, "zero-order"), (0.9, "ses"),
     (1.0, "ses"), (-0.3, "random")],
)  # fmt: skip
def test_smooth_landscapes_favour_climbing_and_rugged_ones_random(
    near: float, favours: str
) -> None:
    first = advice(found(m(near, 0.0)))[0]
    assert first.favours[0] == favours and first.settled
    assert f"{near:.2f}" in first.text


def test_an_interval_that_reaches_into_other_answers_is_not_settled() -> None:
    first = advice(found(m(0.6, 0.3)))[0]
    assert not first.settled
    assert "rugged and smooth and very smooth" in first.text


def favouring(lines: Iterable[Advice], method: str) -> list[Advice]:
    return [line for line in lines if method in line.favours]


def test_previews_decide_halving_and_branching() -> None:
    good = advice(found(m(0.6), half=m(0.85)))
    assert favouring(good, "halving")[0].settled
    assert "From step 10 on" in favouring(good, "steering")[0].text
    middling = advice(found(m(0.6), half=m(0.7, 0.2)))
    assert not favouring(middling, "halving")
    assert not next(line for line in middling if "about even" in line.text).settled
    falling = advice(found(m(0.6), previews={2: m(0.55), 5: m(0.2), 10: m(0.3), 15: m(0.9)}))
    assert not favouring(falling, "steering")  # what began well did not last
    poor = advice(found(m(0.6), half=m(0.3)))
    assert not favouring(poor, "halving") and not favouring(poor, "steering")
    assert any("would choose by noise" in line.text for line in poor)


def test_a_shorter_step_is_named_where_it_still_finds_a_slope() -> None:
    lines = advice(found(m(0.1)))
    assert "search_args.threshold=0.99" in favouring(lines, "zero-order")[0].text
    none = advice(found(m(0.1), by_cosine={0.99: m(0.2), 0.95: m(0.1)}))
    assert not favouring(none, "zero-order")


def test_every_method_that_is_named_can_be_chosen() -> None:
    named = {name for rule in (*TOYS, *CUTS) for name in rule.favours}
    for line in advice(found(m(0.9), half=m(0.9))):
        named |= set(line.favours)
    assert {"random", "ses", "halving", "steering", "rbf"} <= named <= set(SEARCHES)


def test_few_steps_flat_scores_and_a_verifier_of_prompts_are_named() -> None:
    texts = [a.text for a in advice(found(m(0.6), m(0.9), steps=4, flat=3, between=m(0.97)))]
    assert any("no room" in text for text in texts)
    assert any("3 of 4 prompts give one score" in text for text in texts)
    assert any("between prompts" in text for text in texts)
    assert not any("Previews" in text for text in texts)


@pytest.mark.parametrize("score", [1.0, math.nan])
def test_scores_that_never_differ_are_reported_and_drawn(score: float) -> None:
    rows = [ToyRow(0, 20, 20, seed, {"op": "draw"}, score) for seed in range(8)]
    rows += [ToyRow(0, 10, 20, seed, {"op": "draw"}, score) for seed in range(8)]
    rows += [
        ToyRow(0, 20, 20, 8 + s, {"op": "perturb", "of": s, "cosine": 0.95}, score)
        for s in range(4)
    ]
    nothing = landscape(rows)
    assert nothing.by_cosine == {0.95: UNKNOWN, 0.0: UNKNOWN}
    assert nothing.previews == {10: UNKNOWN}
    assert advice(nothing)[0].favours == ("random",)
    assert nothing.flat == (0 if math.isnan(score) else 1)
    json.dumps(nothing.as_json(), allow_nan=False)
    assert picture(nothing, "nothing", None).startswith(b"\x89PNG")


def numbers(text: str, after: str) -> int:
    return int(text.partition(after)[2].split()[0])


def test_a_whole_probe_costs_what_its_plan_said_and_reports_what_its_rows_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grader = '--set=verifier_args={"name": "tests.graders:Brightness"}'
    argv = [f"--pipeline_config_path={FLUX}", *SIZE, grader, f"--output_dir={tmp_path}"]
    assert main([*argv, "--dry_run"]) == 0
    plan = capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert main(argv) == 0
    report = capsys.readouterr().out

    judged = "tests.graders_Brightness/brightness"
    (path,) = tmp_path.glob(f"probe/shapes-flux/{judged}/*/probe.json")
    content = json.loads(path.read_text())
    rows = [
        json.loads(line) for line in (path.parent / "candidates.jsonl").read_text().splitlines()
    ]
    planned = int(plan.partition("image), ")[2].split()[0])
    assert planned == content["cost"]["nfe"] == numbers(report, "cost: ") == 2 * 28 * STEPS
    assert planned == sum(row["nfe"] for row in rows)
    assert content["cost"]["images"] == 56
    stops = len(content["previews"])
    assert "112 in all" not in plan
    assert f"{56 + 2 * 8 * stops} in all" in plan
    assert content["cost"]["previews"] == 2 * 8 * stops > 0
    assert (path.parent / "probe.png").read_bytes().startswith(b"\x89PNG")

    # The number at cosine 0.95, once more and otherwise: mean of the two prompts' correlations.
    each = []
    for index in (0, 1):
        done = [r for r in rows if r["prompt_index"] == index and r["step"] == STEPS]
        drawn = {r["seed"]: r["score"] for r in done if r["recipe"]["op"] == "draw"}
        near = [r for r in done if r["recipe"].get("cosine") == 0.95]
        a, b = [drawn[r["recipe"]["of"]] for r in near], [r["score"] for r in near]
        r = float(np.corrcoef(a, b)[0, 1])
        each.append(r + r * (1 - r * r) / 6)
    (at,) = [row for row in content["correlation"] if row["cosine"] == 0.95]
    assert at["value"] == pytest.approx(np.mean(each))
    assert f"{at['value']:.2f}" in report
    for line in content["advice"]:
        assert line["text"][:40] in " ".join(report.split())


@pytest.mark.slow
def test_a_probe_that_is_cut_anywhere_goes_on_to_the_same_findings(tmp_path: Path) -> None:
    own = still_config(tmp_path / "world", verifier_args={"name": "tests.interrupted:Counted"})
    (tmp_path / "own.json").write_text(json.dumps(own))

    def probed(root: str, *how: str) -> int:
        asked = ["--probe=4", f"--pipeline_config_path={tmp_path / 'own.json'}"]
        return main([*asked, f"--output_dir={tmp_path / root}", *how])

    def folder(root: str) -> Path:
        (found,) = (tmp_path / root).glob("probe/*/*/*/*")
        return found

    Counting.begin()
    assert probed("whole") == 0
    expected, calls, images = content(folder("whole")), Counting.calls, Counting.images
    assert {"probe.json", "probe.png"} <= expected.keys()
    for at, by_name in ((calls // 2, True), (calls - 1, False)):
        Counting.begin(at, KeyboardInterrupt)
        assert probed(f"cut{at}") == 130
        seen = Counting.images
        Counting.begin()
        cut = folder(f"cut{at}")
        again = main([f"--resume={cut}"]) if by_name else probed(f"cut{at}", "--resume=auto")
        assert again == 0
        assert content(cut) == expected
        assert seen + Counting.images == images
    # Cut between the run's end and its report.
    (folder("whole") / "probe.json").unlink()
    Counting.begin()
    assert probed("whole", "--resume=auto") == 0
    assert content(folder("whole")) == expected and not Counting.images


def test_a_probe_of_which_every_prompt_failed_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = still_config(tmp_path / "world", verifier_args={"name": "tests.interrupted:Broken"})
    (tmp_path / "own.json").write_text(json.dumps(own))
    asked = ["--probe=4", f"--pipeline_config_path={tmp_path / 'own.json'}"]
    assert main([*asked, f"--output_dir={tmp_path / 'o'}"]) == 3
    said = capsys.readouterr().out
    assert "2 prompts failed: summary.json says why." in said
    notes = [Path(line.split(": ", 1)[1]) for line in said.splitlines() if "  details: " in line]
    assert len(notes) == 2 and all("Traceback" in note.read_text() for note in notes)


def config(path: str, **changes: Any) -> Any:
    content = json.loads(Path(path).read_text())
    content["pipeline_call_args"]["num_inference_steps"] = 3
    return parse_config({**content, "prompt": "a red circle", **changes})


def test_a_solver_with_a_history_is_probed_without_previews(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--pipeline_config_path=configs/shapes_sd.json", *SIZE, "--num_prompts=1",
            "--set=pipeline_call_args.num_inference_steps=2",
            '--set=scheduler={"_class_name": "UniPCMultistepScheduler"}',
            f"--output_dir={tmp_path}"]  # fmt: skip
    assert main([*argv, "--dry_run"]) == 0
    assert "previews      none: UniPCMultistepScheduler" in capsys.readouterr().out
    assert main(argv) == 0
    assert "not measured: UniPCMultistepScheduler keeps a history" in capsys.readouterr().out
    (path,) = tmp_path.glob("probe/*/*/*/*/probe.json")
    content = json.loads(path.read_text())
    assert content["previews"] == [] and content["cost"]["previews"] == 0
    assert "UniPC" in content["previews_skipped"]


def test_a_verifier_with_previews_of_its_own_keeps_them() -> None:
    probe = set_up(config(FLUX, verifier_args={"name": "tests.graders:Settled"}), 4)
    assert type(probe.search) is Probing
    assert probe.skipped is not None and "preview of its own" in probe.skipped


def test_search_budget_and_judges_of_the_config_do_not_count() -> None:
    probe = set_up(config(FLUX, budget={"nfe": 9}, search_args={"search_method": "zero-order"}), 5)
    assert probe.config.search_args.search_method == "search.probing:PreviewProbing"
    assert probe.config.rounds == 1 and not probe.config.judges
    assert not probe.config.budget.build().bounded
    assert probe.search.noises == 5


@pytest.mark.parametrize("wrong", ["3", "0", "-1"])
def test_too_few_noises_are_refused_in_one_sentence(
    wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--pipeline_config_path={FLUX}", f"--probe={wrong}"]) == 2
    out = capsys.readouterr()
    assert out.err.count("\n") == 1 and "noises must be at least 4" in out.err


def test_a_probe_is_no_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--compare=nowhere.json", "--probe"]) == 2
    assert "--probe" in capsys.readouterr().err


def test_cosines_and_shares_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="cosines"):
        Probing(cosines=(1.0,))
    with pytest.raises(ValueError, match="shares"):
        PreviewProbing(shares=(1.0,))
    with pytest.raises(UserError, match="noises"):
        set_up(config(FLUX), 2)
