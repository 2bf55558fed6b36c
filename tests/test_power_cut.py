"""What a power cut could leave: only what was settled, in the order in which it was."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiment.lines import LineFile
from experiment.shard_files import ShardExperiment, ShardStore, merge
from tests.interrupted import content
from tests.still_worlds import StillWorld

Event = tuple[str, str]  # what was done, and to which path


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Every fsync, rename and removal, in order."""
    seen: list[Event] = []

    def watched(name: str, path_of: Callable[..., str]) -> None:
        real = getattr(os, name)

        def doing(*args: Any, **kwargs: Any) -> Any:
            seen.append((name, path_of(*args, **kwargs)))
            return real(*args, **kwargs)

        monkeypatch.setattr(f"os.{name}", doing)

    def behind(handle: int) -> str:
        return os.readlink(f"/proc/self/fd/{handle}")

    def removed(path: Any, *, dir_fd: int | None = None) -> str:
        return str(path) if dir_fd is None else f"{behind(dir_fd)}/{path}"

    watched("fsync", behind)
    watched("replace", lambda source, target: str(target))
    watched("unlink", removed)
    watched("rmdir", removed)
    return seen


def first(events: list[Event], event: Event, after: int = -1) -> int:
    return events.index(event, after + 1)


def named(events: list[Event], folder: Path) -> list[int]:
    """When files in a folder got their names."""
    return [i for i, (did, path) in enumerate(events)
            if did == "replace" and Path(path).parent == folder]  # fmt: skip


def test_a_done_line_follows_the_files_it_names_and_precedes_the_journals_end(
    tmp_path: Path, events: list[Event]
) -> None:
    world = StillWorld.made(tmp_path)
    folder = world.begun("run")
    events.clear()
    world.go_on(folder)
    done = [i for i, event in enumerate(events) if event == ("fsync", f"{folder}/state/done.jsonl")]
    assert len(done) == len(world.planned.prompts) == 2
    for line in done:
        last = max(i for i in named(events, folder) if i < line)
        assert last < first(events, ("fsync", str(folder)), last) < line
    begin = 0
    for index, line in enumerate(done):
        journal = first(events, ("unlink", f"{folder}/state/prompt{index}.jsonl"))
        assert begin <= line < journal
        begin = journal
    # The first one's own name as well.
    assert ("fsync", f"{folder}/state") in events[done[0] + 1 : done[0] + 2]


def test_a_prompts_end_settles_one_folder(tmp_path: Path, events: list[Event]) -> None:
    world = StillWorld.made(tmp_path)
    folder = world.begun("run")
    events.clear()
    world.go_on(folder)
    done = [i for i, event in enumerate(events) if event == ("fsync", f"{folder}/state/done.jsonl")]
    rows = max(i for i, e in enumerate(events[: done[1]]) if e[1] == f"{folder}/candidates.jsonl")
    journal = first(events, ("unlink", f"{folder}/state/prompt1.jsonl"))
    folders = (("fsync", str(folder)), ("fsync", f"{folder}/state"))
    assert sum(event in folders for event in events[rows:journal]) == 1


def test_state_goes_when_the_summarys_name_is_settled(tmp_path: Path, events: list[Event]) -> None:
    world = StillWorld.made(tmp_path)
    folder = world.begun("run")
    world.go_on(folder)
    summary = first(events, ("replace", f"{folder}/summary.json"))
    settled = first(events, ("fsync", str(folder)), summary)
    journal = first(events, ("unlink", f"{folder}/state/prompt1.jsonl"))
    assert ("fsync", str(folder)) in events[journal:summary]  # rows that were put in order
    assert settled < first(events, ("unlink", f"{folder}/state/done.jsonl"))
    assert not (folder / "state").exists()


def test_shards_results_follow_their_files_and_go_after_the_summary(
    tmp_path: Path, events: list[Event]
) -> None:
    world = StillWorld.made(tmp_path)
    whole = world.whole
    folder = world.begun("run")
    store = ShardStore(folder, world.config.export)
    store.shards.mkdir(parents=True)
    events.clear()
    engine = world.engine
    engine.experiment(world.config, world.planned, store, ShardExperiment).run()
    for index in range(2):
        result = first(events, ("replace", f"{store.shards}/prompt{index}.json"))
        last = max(i for i in named(events, folder) if i < result)
        assert last < first(events, ("fsync", str(folder)), last) < result
        journal = first(events, ("unlink", f"{folder}/state/prompt{index}.jsonl"))
        assert result < first(events, ("fsync", str(store.shards)), result) < journal
    assert merge(store, world.planned.prompts) == 0
    rows = first(events, ("replace", f"{folder}/candidates.jsonl"))
    done = first(events, ("replace", f"{folder}/state/done.jsonl"))
    summary = first(events, ("replace", f"{folder}/summary.json"))
    assert rows < first(events, ("fsync", str(folder)), rows) < done
    assert done < first(events, ("fsync", f"{folder}/state"), done) < summary
    settled = first(events, ("fsync", str(folder)), summary)
    removed = [("unlink", f"{store.shards}/prompt{index}.json") for index in range(2)]
    assert all(settled < first(events, event) for event in removed)
    assert content(folder) == whole.content


def test_a_files_first_line_settles_its_name(tmp_path: Path, events: list[Event]) -> None:
    lines = LineFile(tmp_path / "lines.jsonl", "")
    lines.append({"n": 1})
    lines.append({"n": 2})
    both = ("fsync", str(lines.path))
    assert events == [both, ("fsync", str(tmp_path)), both]
