"""Prompts that fail every time: the others are searched for, and the run comes to its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from experiment.progress import done_lines
from experiment.stops import FAILED_IN_A_ROW, Stopped
from experiment.store import RunStore
from tests.interrupted import Counted, Counting, content
from tests.still_worlds import StillWorld
from verifiers.base import Item, Score

BAD = FAILED_IN_A_ROW + 1
Answer = Callable[[Item], Score | None]  # None: as ever


def blocked(item: Item) -> Score:
    return Score.missing("the server blocked the image or the prompt", "blocked")


def fallen(item: Item) -> Score:
    raise ZeroDivisionError("the grader fell over")


def silent(item: Item) -> Score:
    return Score.missing("the answer is no grading")


@pytest.fixture
def bad(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Answer]]:
    """What is said of bad prompts, if anything; all else is answered as ever."""
    answer, instead = Counted._one, list[Answer]()

    def one(self: Counted, item: Item) -> Score:
        told = instead[0](item) if instead and "bad" in item.prompt else None
        return told or answer(self, item)

    monkeypatch.setattr(Counted, "_one", one)
    Counting.begin()
    yield instead


def world_of(folder: Path, **changes: Any) -> StillWorld:
    prompts = folder / "own.txt"
    prompts.write_text("".join(f"bad {i}\n" for i in range(BAD)) + "good\nbetter\n")
    grader = {"name": "tests.interrupted:Counted"}
    return StillWorld.made(
        folder, verifier_args=grader, judges=[], prompts=str(prompts), **changes
    )  # fmt: skip


def failures(folder: Path) -> list[bool]:
    summary = json.loads((folder / "summary.json").read_text())
    return ["failed" in prompt for prompt in summary["prompts"]]


def order(folder: Path) -> list[int]:
    rows = (folder / "candidates.jsonl").read_text().splitlines()
    return [json.loads(row)["prompt_index"] for row in rows]


@pytest.mark.parametrize("at_once", [1, 3])
def test_prompts_of_which_all_images_are_blocked_do_not_end_the_run(
    at_once: int, tmp_path: Path, bad: list[Answer]
) -> None:
    world = world_of(tmp_path, engine_args={"prompts_at_once": at_once})
    whole = world.whole.content
    bad.append(blocked)
    folder = world.begun("run")
    for _ in range(2):  # again, they are as the grader left them
        world.go_on(folder)
        assert failures(folder) == [True] * BAD + [False] * 2
        assert order(folder) == sorted(order(folder))
    bad.clear()
    (folder / "state" / "prompt0.jsonl").unlink()  # it has an answer, and is not asked again
    world.go_on(folder)
    assert failures(folder) == [False] + [True] * (BAD - 1) + [False] * 2
    for journal in (folder / "state").glob("prompt*.jsonl"):
        journal.unlink()
    world.go_on(folder)
    assert content(folder) == whole


@pytest.mark.parametrize("wrong", [fallen, silent])
def test_prompts_that_fail_again_and_again_come_last_and_let_the_run_end(
    wrong: Answer, tmp_path: Path, bad: list[Answer]
) -> None:
    world = world_of(tmp_path)
    whole = world.whole.content
    bad.append(wrong)
    folder = world.begun("run")
    with pytest.raises(Stopped, match=f"{FAILED_IN_A_ROW} prompts in a row failed"):
        world.go_on(folder)
    assert not (folder / "summary.json").exists()
    assert len(list((folder / "state").glob("*.failed.txt"))) == FAILED_IN_A_ROW
    world.go_on(folder)
    assert failures(folder) == [True] * BAD + [False] * 2
    assert order(folder) == sorted(order(folder))
    bad.clear()
    world.go_on(folder)
    assert content(folder) == whole


def test_prompts_never_tried_are_searched_before_those_that_failed(
    tmp_path: Path, bad: list[Answer]
) -> None:
    world = world_of(tmp_path)
    bad.append(fallen)
    folder = world.begun("run")
    with pytest.raises(Stopped):
        world.go_on(folder)
    bad.clear()
    asked: list[str] = []
    answer = Counted._one

    def noted(self: Counted, item: Item) -> Score:
        asked.append(item.prompt)
        return answer(self, item)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Counted, "_one", noted)
        world.go_on(folder)
    expected = ["bad 5", "good", "better", *(f"bad {i}" for i in range(5))]
    assert list(dict.fromkeys(asked)) == expected
    assert content(folder) == world.whole.content


def test_a_prompt_that_no_grader_answers_for_does_not_hold_up_the_others(
    tmp_path: Path, bad: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiment.stops.UNSCORED_IN_A_ROW", 3)
    world = world_of(tmp_path)
    bad.append(lambda item: silent(item) if item.prompt == "bad 0" else None)
    folder = world.begun("run")
    for _ in range(2):
        with pytest.raises(Stopped, match="3 images in a row got no score"):
            world.go_on(folder)
    done = done_lines(RunStore(folder, world.config.export), world.planned.prompts)
    assert sorted(done) == list(range(1, BAD + 2))
    bad.clear()
    world.go_on(folder)
    assert content(folder) == world.whole.content
