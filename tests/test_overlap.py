"""What overlaps in time changes nothing: order, results, what an interruption leaves."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from experiment.config import parse_config
from experiment.overlap import in_turn, one_behind
from experiment.resume import finished
from experiment.runner import Engine, load, plan
from experiment.searching import Experiment
from experiment.store import RunStore
from pipelines.parts import denoisers
from tests.graders import Far
from tests.interrupted import Killed, content, killed_at
from tests.test_run import config

FAR, NEAR = {"name": "tests.graders:Far"}, {"name": "tests.graders:Brightness"}
ASKED = config(
    prompt=None, num_prompts="all", verifier_args=FAR, batch_size_for_img_gen=2,
    search_args={"search_method": "zero-order"}, budget={"nfe": 12},
)  # fmt: skip
PATIENCE = 60.0  # seconds: only a failing test waits as long


def same(each: int) -> int:
    return each


# One behind ---------------------------------------------------------------------------------------


def test_each_is_finished_while_the_next_is_made() -> None:
    making, overlapped = [threading.Event() for _ in range(5)], []

    def made() -> Iterator[int]:
        for i in range(4):
            making[i].set()
            yield i

    def finish(i: int) -> int:
        overlapped.append(i == 3 or making[i + 1].wait(PATIENCE))
        return 10 * i

    assert list(one_behind(made(), same, finish)) == [0, 10, 20, 30]
    assert all(overlapped) and len(overlapped) == 4


def test_what_is_in_hand_is_finished_before_a_failure_is_told() -> None:
    def made() -> Iterator[int]:
        yield from (0, 1)
        raise MemoryError

    done: list[int] = []
    with pytest.raises(MemoryError):
        for each in one_behind(made(), same, same):
            done.append(each)
    assert done == [0, 1]


def test_nothing_is_finished_after_what_could_not_be() -> None:
    done: list[int] = []

    def finish(i: int) -> int:
        if i == 1:
            raise ZeroDivisionError
        done.append(i)
        return i

    with pytest.raises(ZeroDivisionError):
        list(one_behind(range(4), same, finish))
    assert done == [0]


def test_a_consumer_that_leaves_does_not_lose_what_was_made() -> None:
    made: list[int] = []
    done: list[int] = []

    def source() -> Iterator[int]:
        for i in range(9):
            made.append(i)
            yield i

    behind = one_behind(source(), same, lambda i: done.append(i))
    next(behind)
    behind.close()
    assert made == done == [0, 1]


# In turn ------------------------------------------------------------------------------------------


def test_results_come_in_the_order_of_the_items_whatever_their_time() -> None:
    last = threading.Event()

    def work(i: int) -> int:
        if i == 0:
            assert last.wait(PATIENCE)
        if i == 2:
            last.set()
        return i * i

    assert list(in_turn(range(6), work, 3, lambda: None)) == [(i, i * i) for i in range(6)]


class Currents(threading.local):
    """The current GPU of each thread, as CUDA keeps it: the first until it is set."""

    index = 0

    def set(self, index: int) -> None:
        self.index = index


@pytest.fixture
def currents(monkeypatch: pytest.MonkeyPatch) -> Currents:
    found = Currents()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: found.index)
    monkeypatch.setattr(torch.cuda, "set_device", found.set)
    return found


def test_threads_stay_on_the_gpu_of_the_one_that_starts_them(currents: Currents) -> None:
    currents.set(3)

    def work(_: int) -> list[int]:
        return [currents.index, *one_behind(range(2), same, lambda _: currents.index)]

    assert [seen for _, seen in in_turn(range(3), work, 2, lambda: None)] == [[3, 3, 3]] * 3


def test_no_more_than_so_many_are_worked_on_at_once() -> None:
    lock, now, most = threading.Lock(), [0], [0]
    meeting = threading.Barrier(3)

    def work(i: int) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        meeting.wait(PATIENCE)
        with lock:
            now[0] -= 1

    list(in_turn(range(9), work, 3, lambda: None))
    assert most[0] == 3


@pytest.mark.parametrize("by_the_consumer", [False, True])
def test_the_first_error_ends_the_others(by_the_consumer: bool) -> None:
    halted, begun = threading.Event(), []

    def work(i: int) -> int:
        begun.append(i)
        if i == 1 and not by_the_consumer:
            raise ZeroDivisionError
        assert i == 0 or halted.wait(PATIENCE)
        return i

    working = in_turn(range(50), work, 3, halted.set)
    with pytest.raises(ZeroDivisionError):
        for _ in working:
            if by_the_consumer:
                working.throw(ZeroDivisionError)
    assert halted.is_set() and len(begun) < 50


# Whole runs ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _nobody_waits() -> Iterator[None]:
    Far.asked = []
    yield
    Far.meeting = None


class Runs:
    """Runs on one engine, over four prompts, with other numbers of prompts at once."""

    def __init__(self, folder: Path, engine: Engine, batch_size: int = 2, **changes: Any) -> None:
        self._folder, self._engine, self._batch_size = folder, engine, batch_size
        prompts = folder / "prompts.txt"
        prompts.write_text("".join(f"a red circle, number {i}\n" for i in range(4)))
        self._content = {**ASKED, "prompts": str(prompts), **changes}

    def go_on(self, name: str, at_once: int) -> Path:
        """A run from its beginning or from where it was left."""
        folder = self._folder / name
        folder.mkdir(exist_ok=True)
        asked = parse_config({**self._content, "engine_args": {"prompts_at_once": at_once}})
        store = RunStore(folder, asked.export)
        made, engine = plan(asked), self._engine
        Experiment(
            asked, engine.denoiser, asked.verifier_args.build(), {}, store, made, self._batch_size
        ).run()
        return folder


@pytest.fixture
def runs(tmp_path: Path, engine: Engine) -> Runs:
    return Runs(tmp_path, engine)


@pytest.fixture(scope="module")
def engine() -> Engine:
    asked = parse_config({**ASKED, "prompt": "a red circle"})
    return load(asked, plan(asked))


def test_prompts_at_once_leave_the_same_bytes_as_one_after_another(runs: Runs) -> None:
    alone = content(runs.go_on("alone", 1))
    one_after_another = list(dict.fromkeys(Far.asked))
    meeting = threading.Barrier(3)
    calls = itertools.count()
    Far.asked, Far.meeting = [], lambda: next(calls) > 2 or meeting.wait(PATIENCE)
    assert content(runs.go_on("together", 3)) == alone
    assert len(set(Far.asked[:3])) == 3 and len(one_after_another) == 4


@pytest.mark.slow
def test_a_local_verifier_is_asked_by_one_prompt_at_a_time(tmp_path: Path, engine: Engine) -> None:
    runs = Runs(tmp_path, engine, verifier_args=NEAR)
    assert content(runs.go_on("together", 3)) == content(runs.go_on("alone", 1))


@pytest.mark.slow
@pytest.mark.parametrize("number", [11, 24])
def test_prompts_at_once_go_on_from_wherever_they_were_killed(runs: Runs, number: int) -> None:
    alone = content(runs.go_on("alone", 1))
    with pytest.raises(Killed), killed_at(number):
        runs.go_on("together", 3)
    assert content(runs.go_on("together", 2)) == alone


@pytest.mark.slow
def test_a_failing_prompt_leaves_the_others_alone(runs: Runs) -> None:

    falls = [ZeroDivisionError]

    def fall_once() -> None:
        if falls:
            raise falls.pop()

    Far.meeting = fall_once
    folder = runs.go_on("together", 3)
    assert not finished(folder)
    Far.meeting = None
    assert content(runs.go_on("together", 3)) == content(runs.go_on("alone", 1))


def test_a_batch_is_judged_elsewhere_while_the_next_is_denoised(
    tmp_path: Path, engine: Engine
) -> None:
    runs = Runs(
        tmp_path, engine, search_args={"search_method": "random", "search_rounds": 2}, budget={}
    )
    forwards, second = [0], threading.Event()
    steps = engine.denoiser.steps("a red circle")

    def count(*_: Any) -> None:
        forwards[0] += 1
        if forwards[0] > 2 * steps:  # round 1 is one batch; round 2 has two
            second.set()

    (part,) = denoisers(engine.denoiser.pipe)
    hook = part.register_forward_pre_hook(count)
    overlapped: list[bool] = []

    def wait() -> None:
        if len(Far.asked) == 4:  # the first batch of the second round
            overlapped.append(second.wait(PATIENCE))

    Far.meeting = wait
    runs.go_on("run", 1)
    hook.remove()
    assert overlapped == [True]


# Asked ahead --------------------------------------------------------------------------------------


def rows_of(runs: Runs, name: str, at_once: int = 1) -> list[dict[str, Any]]:
    lines = (runs.go_on(name, at_once) / "candidates.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["prompt_index"] == 0]


@pytest.mark.slow
@pytest.mark.parametrize(("pool", "images"), [("nested", 13), ("fresh", 13)])
def test_a_blind_searchs_batches_are_filled_with_later_rounds(
    tmp_path: Path, engine: Engine, pool: str, images: int
) -> None:
    random = {"search_method": "random", "pool": pool}
    asked = {"search_args": random, "budget": {"nfe": 2 * images}, "num_prompts": 1}
    filled = rows_of(Runs(tmp_path, engine, batch_size=4, **asked), "filled")
    alone = rows_of(Runs(tmp_path, engine, batch_size=1, **asked), "alone")
    same = ("id", "round", "seed", "nfe", "rows", "path", "step", "recipe", "parents")
    assert [[row[key] for key in same] for row in filled] == [
        [row[key] for key in same] for row in alone
    ]
    assert [row["batch_size"] for row in filled] == [4] * 12 + [1]
    for one, other in zip(filled, alone, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=0.02)


@pytest.mark.slow
def test_what_was_made_ahead_is_not_made_again(tmp_path: Path, engine: Engine) -> None:
    random = {"search_method": "random", "pool": "nested"}
    runs = Runs(tmp_path, engine, batch_size=4, search_args=random, budget={"nfe": 26})
    alone = content(runs.go_on("alone", 1))
    whole = len(Far.asked)
    Far.asked = []
    with pytest.raises(Killed), killed_at(9):
        runs.go_on("killed", 1)
    assert content(runs.go_on("killed", 1)) == alone
    assert whole <= len(Far.asked) <= whole + 4
