"""Run folders damaged in any way, gone on with, read and replayed: refused, or the right result.

What no reader of an unfinished run could notice: a picture of a prompt that is done, changed
without a change in size (a long run has more of them than can be read again; a PNG carries
checksums of its own). A finished run is left as it is found.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import process_results
from main import main
from tests.fuzz import changed, command, damaged, json_bytes, often
from tests.interrupted import Counting, Killed, content, killed_at
from tests.still_worlds import StillWorld, still_config

# Methods, and after which shares of their writes runs ended; 1: of its own accord.
RUNS = {"random": (0.3, 0.8, 1.0), "zero-order": (0.25, 0.7), "steering": (0.7,), "ses": (0.6,),
        "draft": (0.25, 0.9)}  # fmt: skip
DAMAGES = ("bytes", "bytes", "fields", "gone", "other", "folder", "new")
FOREIGN = ("notes.txt", "prompt@x_hash@0_i@1_s@1.png", "prompt9.jsonl")
VIEWS = (
    ("--per_round",),
    ("--table", "--curves"),
    ("--report",),
    ("--top_k=2",),
    ("--simulate=best",),
    ("--simulate=halving@0.5",),
    ("--export=imagefolder",),
    ("--export=preferences",),
    ("--export=preferences_trl",),
    ("--export=parquet",),
)


@dataclass(frozen=True)
class Made:
    """A run as it was left, and what it comes to."""

    folder: Path
    ends_as: dict[str, Any]

    @property
    def done(self) -> set[str]:
        """Stems of the prompts that are done."""
        path = self.folder / "state" / "done.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        named = (name for line in lines for name in json.loads(line)["files"])
        return {name.rsplit("_i@", 1)[0] for name in named}


@dataclass(frozen=True)
class Worlds:
    """Runs to damage, and the engines that they were made on."""

    made: list[Made]
    engines: dict[str, Any]
    scratch: Path

    @classmethod
    def begun(cls, root: Path) -> Worlds:
        engines = {}
        made = []
        for method, shares in RUNS.items():
            world = StillWorld.made(root / method, method)
            engines[method] = world.engine
            config = root / method / "config.json"
            config.write_text(json.dumps(still_config(root / method, method)))
            with patched(engines):
                whole, writes = ran(config, root / f"{method}_whole", -1)
                for share in shares:
                    at = -1 if share == 1.0 else int(2 * share * writes)
                    left, _ = ran(config, root / f"{method}_{share}", at)
                    made.append(Made(left, content(whole)))
        return cls(made, engines, root / "scratch")

    def damaged(self, data: st.DataObject) -> tuple[Made, Path]:
        """A copy of one of the runs, and what has happened to it."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        made = data.draw(st.sampled_from(self.made))
        folder = self.scratch / "run"
        shutil.copytree(made.folder, folder)
        for _ in range(data.draw(st.integers(1, 2))):
            self._damage(data, folder)
        return made, folder

    def _damage(self, data: st.DataObject, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        # Records as often as the many pictures.
        records = [path for path in files if path.suffix in (".json", ".jsonl")]
        path = data.draw(st.sampled_from(records) | st.sampled_from(files))
        what = data.draw(st.sampled_from(DAMAGES))
        if what == "bytes":
            path.write_bytes(data.draw(damaged(path.read_bytes())))
        elif what == "fields":
            _change_fields(data, path)
        elif what == "gone":
            path.unlink()
        elif what == "other":
            other = data.draw(st.sampled_from(self.made)).folder
            found = sorted(p for p in other.rglob("*") if p.suffix == path.suffix)
            path.write_bytes(data.draw(st.sampled_from(found)).read_bytes() if found else b"")
        elif what == "folder":
            path.unlink()
            path.mkdir()
        else:
            name = data.draw(st.sampled_from((path.name + ".bak", *FOREIGN)))
            (path.parent / name).write_bytes(path.read_bytes())


def _change_fields(data: st.DataObject, path: Path) -> None:
    """Change what a record says and keep its form; others are damaged byte by byte."""
    content = path.read_bytes()
    try:
        trees = [json.loads(line) for line in content.split(b"\n") if line.strip()]
        whole = path.suffix != ".jsonl"
        trees = [json.loads(content)] if whole else trees
    except (ValueError, RecursionError):
        trees = []
    if not trees:
        path.write_bytes(data.draw(damaged(content)))
        return
    i = data.draw(st.integers(0, len(trees) - 1))
    trees[i] = data.draw(changed([trees[i]]))
    path.write_bytes(b"".join(json_bytes(tree) + b"\n" for tree in trees))


def patched(engines: dict[str, Any]) -> Any:
    """Within this block runs take the engine that is loaded already."""

    def loaded(config: Any, planned: Any) -> Any:
        return engines[config.search_args.search_method]

    patches = mock.patch.multiple("experiment.runner", load=loaded)
    patches.attribute_name = None
    return patches


def ran(config: Path, root: Path, number: int) -> tuple[Path, int]:
    """The folder of a run that ended at a write, and how many there were; at -1 it did not."""
    Counting.begin()
    try:
        with killed_at(number) as count:
            command(main, f"--pipeline_config_path={config}", f"--output_dir={root}")
    except Killed:
        pass
    (folder,) = root.glob("*/*/*/*")
    assert (folder / "summary.json").exists() == (number == -1)
    return folder, count[0]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worlds]:
    with mock.patch("os.fsync", lambda _: None):  # no machine loses its power here
        made = Worlds.begun(tmp_path_factory.mktemp("worlds"))
        with patched(made.engines), mock.patch("experiment.replay.load", lambda c, p: made.engines[
            c.search_args.search_method]):  # fmt: skip
            yield made


def resumed_or_refused(worlds: Worlds, data: st.DataObject) -> None:
    made, folder = worlds.damaged(data)
    before = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    own = {str(path.relative_to(made.folder)) for path in made.folder.rglob("*")}
    was = raw(folder)
    Counting.begin()
    ended = command(main, f"--resume={folder}")
    assert ended.code in (0, 2, 3, 4), ended
    if ended.code == 3:  # a prompt that could not be gone on with is recorded as such
        assert "failed: " in ended.out
        return
    if ended.code:
        assert ended.err.strip() and "Traceback" not in ended.err, ended
        return
    if "nothing to resume" in ended.out:
        assert raw(folder) == {k: v for k, v in was.items() if not k.startswith("state")}
        return
    now, expected = content(folder), made.ends_as
    foreign = before - own
    silent = {
        name for name in now
        if name.rsplit("_i@", 1)[0] in made.done and name.endswith(".png")
        and (folder / name).stat().st_size == (made.folder / name).stat().st_size
    }  # fmt: skip
    for name in sorted((now.keys() | expected.keys()) - foreign - silent):
        assert name in now and name in expected, name
        assert now[name] == expected[name], name


def raw(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def read_or_refused(worlds: Worlds, data: st.DataObject) -> None:
    """Readers write views beside the records, and change none of these."""
    _, folder = worlds.damaged(data)
    before = raw(folder)
    view = data.draw(st.sampled_from(VIEWS))
    ended = command(process_results.main, f"--path={folder}", *view)
    assert ended.code in (0, 2), ended
    assert ended.code == 0 or ended.err.strip(), ended
    assert "Traceback" not in ended.err
    now = raw(folder)
    assert {name: now.get(name) for name in before} == before


def replayed_or_refused(worlds: Worlds, data: st.DataObject) -> None:
    _, folder = worlds.damaged(data)
    number = data.draw(st.integers(0, 4))
    ended = command(main, f"--replay={folder}", f"--candidate=0:{number}")
    assert ended.code in (0, 2), ended
    assert ended.code == 0 or ended.err.strip(), ended
    assert command(main, "--list_runs", f"--output_dir={worlds.scratch}").code in (0, 2)


def _as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _replaced(old: str, new: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(re.sub(old, new, path.read_text()))


FOUND: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "rows lost": ("candidates.jsonl", Path.unlink, "The rows of prompt 0 in .* have been changed"),
    "rows a folder": ("candidates.jsonl", _as_folder, "cannot be used"),
    "manifest a folder": ("manifest.json", _as_folder, "cannot be read"),
    "another seed": (
        "config.json",
        _replaced('"seed": 0', '"seed": 1'),
        "config.json has been changed: restore it",
    ),
    "a foreign summary": (
        "summary.json",
        lambda path: path.write_text('{"prompt": []}'),
        "is not a run's summary",
    ),
    "a picture lost": ("prompt@a_red*.png", Path.unlink, "cannot be read: restore it, or delete"),
    "a score changed": (
        "state/prompt1.jsonl",
        _replaced('"value": 0', '"value": 1'),
        "Line .* of .*prompt1.jsonl is damaged",
    ),
}


@pytest.mark.parametrize("kind", FOUND)
def test_what_fuzzing_has_found_stays_found(worlds: Worlds, kind: str) -> None:
    """Each was once gone on with, or ended in a traceback."""
    name, damage, said = FOUND[kind]
    shutil.rmtree(worlds.scratch, ignore_errors=True)
    folder = worlds.scratch / "run"
    shutil.copytree(worlds.made[1].folder, folder)
    damage(next(folder.glob(name), folder / name))
    ended = command(main, f"--resume={folder}")
    assert ended.code == 2 and re.search(said, ended.err) and ended.err.count("\n") == 1, ended


UNFIT: dict[str, Any] = {
    "recipe": None, "seed": True, "batch_size": 10**9, "step": "1", "guidance": None,
}  # fmt: skip


@pytest.mark.parametrize("key", UNFIT)
def test_a_row_that_no_run_writes_is_not_replayed(worlds: Worlds, key: str) -> None:
    """Each once ended in a traceback, or would have taken all memory."""
    shutil.rmtree(worlds.scratch, ignore_errors=True)
    folder = worlds.scratch / "run"
    shutil.copytree(worlds.made[0].folder, folder)
    path = folder / "candidates.jsonl"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), key: UNFIT[key]}), *others, ""]))
    ended = command(main, f"--replay={folder}", "--candidate=0:0")
    assert ended.code == 2 and "Line 1 of" in ended.err and ended.err.count("\n") == 1, ended


@often(25, derandomize=True)
@given(data=st.data())
def test_a_damaged_run_is_gone_on_with_rightly_or_not_at_all(
    worlds: Worlds, data: st.DataObject
) -> None:
    resumed_or_refused(worlds, data)


@often(10, derandomize=True)
@given(data=st.data())
def test_a_damaged_run_is_read_or_refused(worlds: Worlds, data: st.DataObject) -> None:
    read_or_refused(worlds, data)


@often(15, derandomize=True)
@given(data=st.data())
def test_a_damaged_run_is_replayed_or_refused(worlds: Worlds, data: st.DataObject) -> None:
    replayed_or_refused(worlds, data)


@pytest.mark.fuzz
@often(1200, derandomize=False)
@given(data=st.data())
def test_many_damaged_runs_are_gone_on_with_rightly_or_not_at_all(
    worlds: Worlds, data: st.DataObject
) -> None:
    resumed_or_refused(worlds, data)


@pytest.mark.fuzz
@often(500, derandomize=False)
@given(data=st.data())
def test_many_damaged_runs_are_read_or_refused(worlds: Worlds, data: st.DataObject) -> None:
    read_or_refused(worlds, data)


@pytest.mark.fuzz
@often(300, derandomize=False)
@given(data=st.data())
def test_many_damaged_runs_are_replayed_or_refused(worlds: Worlds, data: st.DataObject) -> None:
    replayed_or_refused(worlds, data)
