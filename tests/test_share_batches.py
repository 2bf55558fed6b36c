"""Candidates of several prompts in one batch: each comes out as among copies of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from experiment.compare_config import parse_compare_config
from experiment.config import parse_config
from experiment.prompts import listed
from experiment.replay import replay
from experiment.resume import finished
from experiment.runner import Engine, load, plan
from experiment.searching import Experiment
from experiment.shards import Shard
from experiment.stops import Stopped
from experiment.store import RunStore
from pipelines.denoiser import Denoiser
from pipelines.encoding import Unlike
from tests.families import FAMILIES
from tests.graders import Brightness
from tests.interrupted import Killed, content, killed_at
from tests.test_resume import Cramped
from tests.test_run import config, on_stable_diffusion, rows_of
from utils import UserError
from verifiers.base import Score

FIRST, SECOND = "a red circle left of a blue square", "two green stars above one blue square"
QUICK = ("sd15", "flux", "pixart", "dit")
CASES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES]


def texts_of(name: str) -> tuple[str, str]:
    """Two prompts, or what stands for them."""
    return (FIRST, SECOND) if FAMILIES[name].prompted else ("1", "3")


def mixing(name: str) -> Denoiser:
    family = FAMILIES[name]
    own = {key: value for key, value in family.call_args.items() if key != "class_labels"}
    return Denoiser(family.build(), own)


@pytest.mark.parametrize("name", CASES)
def test_a_row_of_a_shared_batch_is_as_among_copies_of_its_own(name: str) -> None:
    """Bit for bit, denoised and decoded, in its place: whatever stands beside it."""
    denoiser = mixing(name)
    if not denoiser.mixes:
        pytest.skip("its prompts are not encoded by themselves")
    one, other = texts_of(name)
    texts, seeds = (one, other, one), (5, 5, 6)
    drawn = denoiser.draw(one, seeds)
    until = denoiser.steps(one)
    try:
        done = denoiser.denoise(texts, drawn.latents, seeds, drawn.step, until)
    except Unlike:
        pytest.skip("its encodings are as long as their prompts")
    decoded = denoiser.decode(texts, done.latents, seeds, until)
    assert not torch.equal(done.latents[0], done.latents[1])
    for i, text in enumerate(texts):
        copies, mine = drawn.latents[[i] * 3], (seeds[i],) * 3
        own = denoiser.denoise(text, copies, mine, drawn.step, until)
        assert torch.equal(own.latents[i], done.latents[i])
        assert own.rows == done.rows
        picture: Any = denoiser.decode(text, own.latents, mine, until).media[i]
        assert picture == decoded.media[i]


# Whole runs ---------------------------------------------------------------------------------------

NEAR = {"name": "tests.graders:Brightness"}
SEARCH = {"search_method": "zero-order"}  # asks for four neighbours a round


@pytest.fixture(scope="module")
def engine() -> Engine:
    asked = parse_config(config(search_args=SEARCH))
    return load(asked, plan(asked))


class Runs:
    """Runs on one engine over five prompts, of which the third is the first again."""

    def __init__(self, folder: Path, engine: Engine, **changes: Any) -> None:
        self._folder, self._engine = folder, engine
        prompts = folder / "prompts.txt"
        colors = ("red", "green", "red", "blue", "yellow")
        prompts.write_text("".join(f"a {color} circle\n" for color in colors))
        asked = {"prompts": str(prompts), "prompt": None, "num_prompts": "all",
                 "verifier_args": NEAR, "search_args": SEARCH, "budget": {"nfe": 12}}  # fmt: skip
        self._content = config(**{**asked, **changes})

    def go_on(self, name: str, share: int = 3, **engine_args: Any) -> Path:
        """A run from its beginning or from where it was left."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        self.experiment(folder, share, **engine_args).run()
        return folder

    def experiment(self, folder: Path, share: int, **engine_args: Any) -> Experiment:
        asked = parse_config(
            {**self._content, "engine_args": {"share_batches": share, **engine_args}}
        )
        verifier, made = asked.verifier_args.build(), self._engine
        store = RunStore(folder, asked.export)
        if not (folder / "config.json").exists():
            store.write_json("config.json", made.saved(asked))
        return Experiment(asked, made.denoiser, verifier, {}, store, plan(asked), 8)


@pytest.fixture
def runs(tmp_path: Path, engine: Engine) -> Runs:
    return Runs(tmp_path, engine)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Path:
    """A run of companies of three."""
    return Runs(tmp_path_factory.mktemp("shared"), engine).go_on("shared")


def sizes_of(folder: Path) -> set[int]:
    return {row["batch_size"] for row in rows_of(folder)}


def left(folder: Path) -> dict[str, Any]:
    """All that a run has left but its config."""
    found = content(folder)
    del found["config.json"]
    return found


def test_shared_batches_change_nothing_but_last_bits(runs: Runs, shared: Path) -> None:
    alone = runs.go_on("alone", 1)
    assert sizes_of(alone) == {1, 4}
    # The first three prompts ask for 3 x 1 and 3 x 4, of which two fit; the last two for 2 x 1.
    assert sizes_of(shared) == {2, 3, 4, 8}
    bits = ("score", "scores", "batch_size", "seconds")
    for one, other in zip(rows_of(alone), rows_of(shared), strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)
        assert {k: one[k] for k in one if k not in bits} == {
            k: other[k] for k in other if k not in bits
        }


def test_what_shares_a_batch_does_not_depend_on_time(runs: Runs, shared: Path) -> None:
    """Companies side by side, and one after another."""
    assert left(runs.go_on("both", prompts_at_once=6)) == left(shared)


KILLS = [30, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 100, 9))]


@pytest.mark.parametrize("number", KILLS)
def test_a_killed_company_makes_the_same_batches_again(
    runs: Runs, shared: Path, number: int
) -> None:
    with pytest.raises(Killed), killed_at(number):
        runs.go_on("killed", prompts_at_once=6 if number % 4 == 1 else 1)
    assert left(runs.go_on("killed")) == left(shared)


@pytest.mark.parametrize("search", [{"search_method": "steering"}, {"search_method": "monitor"},
                                    {"search_method": "draft"}, {"search_method": "random"}],
                         ids=lambda search: search["search_method"])  # fmt: skip
@pytest.mark.slow
def test_every_kind_of_wish_can_be_shared_killed_and_made_again(
    search: dict[str, Any], tmp_path: Path
) -> None:
    """Unscored stretches, changed guidance, drafts, wishes asked ahead; a verifier elsewhere that
    wants previews; guidance's doubled rows."""
    asked = {**on_stable_diffusion(4), "search_args": search, "budget": {"nfe": 24}}
    asked["verifier_args"] = {"name": "tests.interrupted:Early"}
    one = parse_config(config(**asked))
    made = load(one, plan(one))
    whole = Runs(tmp_path, made, **asked).go_on("whole")
    alone = Runs(tmp_path, made, **asked).go_on("alone", 1)
    assert max(sizes_of(whole)) > max(sizes_of(alone)) or search["search_method"] == "random"
    for number in (9, 33, 61):
        folder = f"killed{number}"
        try:
            with killed_at(number):
                Runs(tmp_path, made, **asked).go_on(folder)
        except Killed:
            Runs(tmp_path, made, **asked).go_on(folder)
        assert left(tmp_path / folder) == left(whole)


def test_batches_too_large_for_the_device_are_made_apart(
    runs: Runs, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer = engine.denoiser.pipe.transformer
    cramped = Cramped(transformer, rows=4)
    monkeypatch.setattr(transformer, "forward", cramped)
    whole = runs.go_on("whole")
    assert sizes_of(whole) == {1, 2, 3, 4}  # each company shares until there is no room
    assert cramped.sizes.count(8) == 2
    with pytest.raises(Killed), killed_at(41):
        runs.go_on("killed")
    assert left(runs.go_on("killed")) == left(whole)


def test_a_prompt_that_fails_leaves_its_company_to_share_on(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(self: Any, items: Any) -> Any:
        if "green" in items[0].prompt and falls:
            raise ZeroDivisionError
        return real(self, items)

    real, falls = Brightness.score, [True]
    monkeypatch.setattr(Brightness, "score", score)
    folder = runs.go_on("run")
    told = json.loads((folder / "summary.json").read_text())["prompts"]
    assert ["failed" in prompt for prompt in told] == [False, True, False, False, False]
    assert 8 in sizes_of(folder)
    falls.clear()
    runs.go_on("run")
    assert finished(folder)
    assert sizes_of(folder) >= {1, 4, 8}  # the one that had failed goes alone


def test_a_company_stops_together(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ends the run for one prompt ends it for those that wait for its batches."""
    silent = Score.missing("its lips are sealed")
    monkeypatch.setattr(Brightness, "score", lambda self, items: [silent] * len(items))
    with pytest.raises(Stopped, match="images in a row got no score"):
        Runs(tmp_path, engine, budget={"nfe": 30}).go_on("run")


def test_an_image_of_a_shared_batch_is_made_again_from_its_row(shared: Path) -> None:
    pictured = [row for row in rows_of(shared) if row["path"]]
    for row in (pictured[0], max(pictured, key=lambda row: (row["batch_size"], row["id"]))):
        number = f"{row['prompt_index']}:{row['id']}"
        assert replay(shared, row["path"], {}).same, number


def test_shards_keep_companies_together() -> None:
    prompts = listed((f"prompt {i}", None) for i in range(30))
    for count in (1, 2, 3):
        shares = [Shard(i, count, "").share(prompts, 4) for i in range(count)]
        assert sorted(prompt.index for share in shares for prompt in share) == list(range(30))
        groups = [{p.index // 4 for p in share} for share in shares]
        assert sum(map(len, groups)) == 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"budget": {"seconds": 3.0}}, "would count their waiting"),
        ({"judges": [{"name": "tests.interrupted:Counting"}]}, "share_batches to 1"),
    ],
)
def test_what_cannot_be_shared_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan(parse_config(config(engine_args={"share_batches": 2}, **changes)))


def test_a_comparison_shares_no_batches(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config(engine_args={"share_batches": 2})))
    asked = {"name": "x", "pipeline_config": str(path), "budgets": [40],
             "methods": {"random": {"search_method": "random"}}}  # fmt: skip
    with pytest.raises(UserError, match="one prompt at a time"):
        parse_compare_config(asked)
