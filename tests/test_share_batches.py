"""Candidates of several prompts in one batch: each comes out as among copies of itself."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from experiment.compare_config import parse_compare_config
from experiment.config import parse_config
from experiment.journal import Journal
from experiment.prompts import listed
from experiment.replay import replay
from experiment.resume import finished
from experiment.runner import Engine, load, plan
from experiment.searching import Experiment
from experiment.shards import Shard
from experiment.stops import Stopped
from experiment.store import RunStore
from pipelines.denoiser import Denoiser
from pipelines.encoding import Encodings, Unlike
from tests.families import FAMILIES
from tests.graders import Brightness, brightness
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


def coded(text: str, layer: int = 0) -> torch.Tensor:
    return torch.full((2, 3), 10.0 * len(text) + layer)


def stacked(prompts: list[str]) -> torch.Tensor:
    """As HiDream's: [layers, batch, tokens, dim]."""
    return torch.stack([torch.stack([coded(p, layer) for p in prompts]) for layer in range(3)])


def listed_layers(prompts: list[str]) -> list[torch.Tensor]:
    """As Bria's: a list of layers, each with a row for each prompt."""
    return list(stacked(prompts))


def with_a_table(prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor, None]:
    """As FLUX's: positions of as many tokens as there are candidates, the same for all."""
    return torch.stack([coded(p) for p in prompts]), torch.arange(3.0)[:, None], None


@pytest.mark.parametrize("encode", [listed_layers, with_a_table])
def test_rows_are_told_from_layers_and_tables_of_as_many(encode: Any) -> None:
    encodings = Encodings(encode)
    encodings.texts = texts = ["a", "bcd", "a"]
    found, expected = encodings(texts), encode(texts)
    for one, other in zip(found, expected, strict=True):
        assert one is other is None or torch.equal(one, other)


def of_its_length(prompts: list[str]) -> list[torch.Tensor]:
    return [torch.ones(len(prompt), 3) for prompt in prompts]


@pytest.mark.parametrize("encode", [stacked, of_its_length])
def test_what_cannot_be_put_together_row_by_row_is_not(encode: Any) -> None:
    encodings = Encodings(encode)
    encodings.texts = texts = ["a", "bcd", "a"]
    with pytest.raises(Unlike):
        encodings(texts)


def test_prompts_that_the_pipeline_rewrites_are_not_put_together() -> None:
    encodings = Encodings(with_a_table)
    encodings.texts = ["a", "bcd", "a"]
    with pytest.raises(Unlike, match="as they are written"):
        encodings(["a, best quality", "bcd, best quality", "a, best quality"])
    assert len(encodings([""] * 3)[0]) == 3  # a negative prompt


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


KILLS = [30, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 17, 55, 83))]


@pytest.mark.parametrize("number", KILLS)
def test_a_killed_company_makes_the_same_batches_again(
    runs: Runs, shared: Path, number: int
) -> None:
    with pytest.raises(Killed), killed_at(number):
        runs.go_on("killed", prompts_at_once=6 if number % 4 == 1 else 1)
    assert left(runs.go_on("killed")) == left(shared)


@pytest.mark.parametrize("search", [{"search_method": "steering"}, {"search_method": "draft"}],
                         ids=lambda search: search["search_method"])  # fmt: skip
@pytest.mark.slow
def test_every_kind_of_wish_can_be_shared_killed_and_made_again(
    search: dict[str, Any], tmp_path: Path
) -> None:
    """Unscored stretches, drafts; a verifier elsewhere that wants previews; guidance's doubled
    rows."""
    asked = {**on_stable_diffusion(4), "search_args": search, "budget": {"nfe": 24}}
    asked["verifier_args"] = {"name": "tests.interrupted:Early"}
    one = parse_config(config(**asked))
    made = load(one, plan(one))
    whole = Runs(tmp_path, made, **asked).go_on("whole")
    alone = Runs(tmp_path, made, **asked).go_on("alone", 1)
    assert max(sizes_of(whole)) > max(sizes_of(alone))
    for number in (33,):
        folder = f"killed{number}"
        try:
            with killed_at(number):
                Runs(tmp_path, made, **asked).go_on(folder)
        except Killed:
            Runs(tmp_path, made, **asked).go_on(folder)
        assert left(tmp_path / folder) == left(whole)


@pytest.mark.slow
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


@pytest.fixture
def green_fails(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Judging the green prompt's second batch fails, or what of it has this mean; empty: nothing
    does."""
    means: list[int] = [-1]
    judged: list[int] = []
    real = Brightness.score

    def score(self: Any, items: Any) -> Any:
        if means and "green" in items[0].prompt:
            now = round(1e6 * brightness(items[0]))
            judged.append(now)
            if means == [-1] and len(judged) == 2:
                means[:] = [now]
            if now in means:
                raise ZeroDivisionError
        return real(self, items)

    monkeypatch.setattr(Brightness, "score", score)
    return means


def test_a_prompt_that_fails_leaves_its_company_to_share_on(
    runs: Runs, green_fails: list[int]
) -> None:
    folder = runs.go_on("run")
    told = json.loads((folder / "summary.json").read_text())["prompts"]
    assert ["failed" in prompt for prompt in told] == [False, True, False, False, False]
    assert 8 in sizes_of(folder)
    green_fails.clear()
    runs.go_on("run")
    assert finished(folder)
    assert sizes_of(folder) >= {1, 4, 8}  # the one that had failed goes alone


def results_of(folder: Path) -> dict[str, Any]:
    """All that a run has left outside its state."""
    return {name: found for name, found in left(folder).items() if not name.startswith("state")}


@pytest.mark.slow
@pytest.mark.parametrize("number", [60])
def test_a_killed_company_of_which_one_fails_makes_the_same_batches_again(
    tmp_path: Path, engine: Engine, green_fails: list[int], number: int
) -> None:
    runs = Runs(tmp_path, engine, budget={"nfe": 26})
    whole = runs.go_on("whole")
    with pytest.raises(Killed), killed_at(number):
        runs.go_on("killed")
    assert results_of(runs.go_on("killed")) == results_of(whole)


@pytest.mark.slow
def test_a_company_that_got_no_answers_goes_on_as_one(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(tmp_path, engine, budget={"nfe": 42})
    whole = runs.go_on("whole")
    answered, real = [9], Brightness.score

    def score(self: Any, items: Any) -> Any:
        answered[0] -= len(items)
        silent = Score.missing("its lips are sealed")
        return real(self, items) if answered[0] >= 0 else [silent] * len(items)

    monkeypatch.setattr(Brightness, "score", score)
    with pytest.raises(Stopped, match="images in a row got no score"):
        runs.go_on("run")
    monkeypatch.undo()
    late = runs.experiment(tmp_path / "run", 3)
    late.note_tried(late.planned.prompts)
    assert late._tried_before == {0, 1, 2} and not late._failed_before
    assert left(runs.go_on("run")) == left(whole)


@pytest.mark.slow
def test_who_runs_out_of_memory_takes_its_last_turn_again(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judging four green circles does; the run is killed before the red ones of that batch are
    kept."""
    real, shrunk, reds = Brightness.score, threading.Event(), itertools.count()
    kills = [False]

    def score(self: Any, items: Any) -> Any:
        if "green" in items[0].prompt and len(items) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if kills[0] and "red" in items[0].prompt and next(reds) == 1:
            assert shrunk.wait(60)
            raise Killed
        return real(self, items)

    def shrink(self: Journal, how: Any) -> None:
        noted(self, how)
        shrunk.set()

    noted = Journal.shrink
    monkeypatch.setattr(Brightness, "score", score)
    monkeypatch.setattr(Journal, "shrink", shrink)
    runs = Runs(tmp_path, engine, num_prompts=2)
    whole = runs.go_on("whole", 2)
    assert sizes_of(whole) >= {2, 8}
    shrunk.clear()
    kills[0] = True
    with pytest.raises(Killed):
        runs.go_on("killed", 2)
    kills[0] = False
    assert left(runs.go_on("killed", 2)) == left(whole)


@pytest.mark.parametrize("part", ["verifier_args", "judges"])
def test_prompts_share_batches_under_an_ensemble(part: str, tmp_path: Path, engine: Engine) -> None:
    """It hands on what is chosen to members who do not listen."""
    ensemble = {"name": "ensemble", "verifiers": [NEAR]}
    asked = {part: ensemble if part == "verifier_args" else [ensemble]}
    folder = Runs(tmp_path, engine, budget={"nfe": 4}, **asked).go_on("run")
    assert finished(folder) and sizes_of(folder) == {2, 3}


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
