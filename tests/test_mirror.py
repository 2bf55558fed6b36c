"""Runs at a URL: a copy from which they can go on at every moment."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import experiment.searching
import experiment.tree
from experiment.mirror import Mirror, mirroring, output_place
from experiment.records import read_candidates
from experiment.runner import run
from experiment.stops import Stopped
from experiment.tree import state_of
from experiment.workplace import Workplace
from main import main
from tests.interrupted import Killed, content
from tests.test_shards import Ask, ask  # noqa: F401
from utils import ROOT, UserError

URL = "memory://bucket/out"


@pytest.fixture(autouse=True)
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files = fsspec.filesystem("memory")
    yield files
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


def fetched(url: str, folder: Path) -> Path:
    """The only run at a URL, in a folder here."""
    Mirror(url, folder).pull()
    (run,) = (path.parent for path in folder.rglob("config.json"))
    return run


def test_what_is_new_is_copied_and_what_is_gone_goes(tmp_path: Path, storage: Any) -> None:
    here = tmp_path / "here"
    (here / "state").mkdir(parents=True)
    mirror = Mirror(URL, here)
    (here / "a.png").write_bytes(b"1")
    (here / "state" / "prompt0.jsonl").write_text("{}\n")
    (here / ".lock").write_text("mine")
    mirror.push()
    assert mirror.names() == ["a.png", "state/prompt0.jsonl"]
    (here / "a.png").write_bytes(b"22")
    shutil.rmtree(here / "state")
    (here / "summary.json").write_text("{}")
    mirror.push()
    assert mirror.names() == ["a.png", "summary.json"]
    assert not storage.exists("/bucket/out/state")
    assert storage.cat("/bucket/out/a.png") == b"22"


def test_a_file_is_copied_after_those_that_it_names(tmp_path: Path, storage: Any) -> None:
    """However a push is cut short, what is there stands on what is there."""
    here = tmp_path / "here"
    (here / "state" / "shards").mkdir(parents=True)
    names = ["a.png", "state/prompt0_0.safetensors", "candidates.jsonl", "state/prompt0.jsonl",
             "state/done.jsonl", "state/shards/prompt1.json", "summary.json"]  # fmt: skip
    for name in names:
        (here / name).write_text(name)
    order = []
    mirror = Mirror(URL, here)
    for call in ("put_file", "pipe_file"):
        _note(mirror, call, order)
    mirror.push()
    assert sorted(order) == sorted(names)
    assert set(order[:2]) == set(names[:2])
    assert set(order[2:4]) == set(names[2:4])


def _note(mirror: Mirror, call: str, order: list[str]) -> None:
    files: Any = mirror._files
    wrapped = getattr(files, call)
    position = {"put_file": 1, "pipe_file": 0}[call]

    def noting(*args: Any) -> Any:
        order.append(mirror._relative(args[position]))
        return wrapped(*args)

    mirror._files = _Wrapped(mirror._files, call, noting)


class _Wrapped:
    def __init__(self, files: Any, name: str, instead: Any) -> None:
        self._files, self._name, self._instead = files, name, instead

    def __getattr__(self, name: str) -> Any:
        return self._instead if name == self._name else getattr(self._files, name)


def test_where_nothing_is_new_nothing_is_looked_at(
    tmp_path: Path, storage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither pictures here, however many, nor the URL; what changes at last is seen."""
    here = tmp_path / "here"
    (here / "state").mkdir(parents=True)
    for at in range(50):
        (here / f"prompt@a_hash@b_i@1_s@{at}.png").write_bytes(b"1")
    (here / "state" / "prompt0.jsonl").write_text("{}\n")
    mirror = Mirror(URL, here)
    mirror.push()
    long_ago = time.time() - 60
    for folder in (here, here / "state"):
        os.utime(folder, (long_ago, long_ago))
    mirror.push()
    looked: list[Path] = []

    def noting(path: Path) -> Any:
        looked.append(path)
        return state_of(path)

    with monkeypatch.context() as patched:
        patched.setattr(experiment.tree, "state_of", noting)
        patched.setattr(os, "listdir", pytest.fail)
        patched.setattr(mirror, "_files", None)
        mirror.push()
    assert {path.name for path in looked} == {"prompt0.jsonl"}

    (here / "prompt@a_hash@b_i@1_s@7.png").unlink()
    (here / "prompt@a_hash@b_i@1_s@99.png").write_bytes(b"2")
    (here / "state" / "prompt0.jsonl").write_text("{}\n{}\n")
    mirror.push()
    there = {n: storage.cat(f"/bucket/out/{n}") for n in mirror.names()}
    assert there == {n.relative_to(here).as_posix(): n.read_bytes() for n in files_of(here)}


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


class ByPrefix(MemoryFileSystem):
    """Lists names that begin so, as object stores do, and counts what it lists and fetches."""

    protocol = "byprefix"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    listed: ClassVar[list[str]] = []
    fetched: ClassVar[list[str]] = []

    def find(self, path: str, *args: Any, prefix: str = "", **kwargs: Any) -> Any:
        found = super().find(path, *args, **kwargs)
        top = f"{self._strip_protocol(path)}/{prefix}"
        found = {name: info for name, info in found.items() if name.startswith(top)}
        self.listed.extend(found)
        return found

    def get_file(self, there: str, *args: Any, **kwargs: Any) -> None:
        self.fetched.append(there)
        super().get_file(there, *args, **kwargs)


@pytest.fixture
def by_prefix() -> Iterator[str]:
    fsspec.register_implementation("byprefix", ByPrefix, clobber=True)
    yield "byprefix://bucket/out"
    ByPrefix.store.clear()
    ByPrefix.listed.clear()
    ByPrefix.fetched.clear()


def test_a_prompts_files_are_found_without_listing_the_others(
    tmp_path: Path, by_prefix: str
) -> None:
    there = Mirror(by_prefix, tmp_path / "a")
    names = [f"prompt@{p}_hash@x_i@1_s@{s}.png" for p in "pqr" for s in range(4)]
    names += [f"state/prompt{p}.jsonl" for p in (1, 11, 2)] + ["state/prompt1_0.safetensors"]
    (tmp_path / "a" / "state").mkdir(parents=True)
    for name in names:
        (tmp_path / "a" / name).write_text(name)
    there.push()
    ByPrefix.listed.clear()
    mirror = Mirror(by_prefix, tmp_path / "b")
    starts = ("state/prompt1.", "state/prompt1_", "prompt@q_hash@x_i@")
    mirror.pull(starts=starts)
    wanted = {name for name in names if name.startswith(starts)}
    assert {p.relative_to(tmp_path / "b").as_posix() for p in files_of(tmp_path / "b")} == wanted
    assert len(ByPrefix.listed) == len(wanted) == 6
    mirror.drop(starts)
    assert not files_of(tmp_path / "b")
    mirror.push()
    assert sorted(mirror.names()) == sorted(names)


def test_going_on_fetches_no_picture_of_a_prompt_that_is_done(
    tmp_path: Path,
    by_prefix: str,
    ask: Ask,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run(ask(), str(tmp_path / "one")).folder
    begun = tmp_path / "begun"
    with monkeypatch.context() as patched, pytest.raises(Killed):
        ends = itertools.count()
        done = experiment.searching.Experiment._done

        def dying(self: Any, *args: Any) -> None:
            if next(ends) == 2:
                raise Killed  # with all of its pictures made, and none of them done
            done(self, *args)

        patched.setattr(experiment.searching.Experiment, "_done", dying)
        run(ask(), str(begun))
    Mirror(by_prefix, begun).push()
    with output_place(ask(), by_prefix, "auto", None) as place:
        (folder,) = (path.parent for path in Path(place.root).rglob("config.json"))
        lines = (folder / "state" / "done.jsonl").read_text().splitlines()
        finished = {json.loads(line)["summary"]["prompt_index"] for line in lines}
        pictures = {path.rpartition("/")[2] for path in ByPrefix.fetched if path.endswith(".png")}
        assert pictures and len(lines) == 2
        rows = read_candidates(begun_folder(begun))
        assert {row.prompt_index for row in rows if row.path in pictures}.isdisjoint(finished)
        assert run(ask(), place.root, "auto").folder == folder
    assert content(fetched(by_prefix, tmp_path / "back")) == content(whole)


def broken(*_: Any) -> None:
    raise PermissionError("no key")


def begun_folder(root: Path) -> Path:
    (folder,) = (path.parent for path in root.rglob("config.json"))
    return folder


def test_what_cannot_be_copied_is_left_without_hollow_pictures(tmp_path: Path) -> None:
    name = "prompt@a_hash@b_i@1_s@1.png"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(b"12345")
    Mirror(URL, tmp_path / "a").push()
    mirror = Mirror(URL, tmp_path / "b")
    (tmp_path / "b").mkdir()
    mirror.pull(hollow=lambda _: True)
    (there,) = files_of(tmp_path / "b")
    assert there.stat().st_size == 5 and there.read_bytes() == bytes(5)
    mirror.push()
    assert fsspec.filesystem("memory").cat(f"/bucket/out/{name}") == b"12345"
    (tmp_path / "b" / "a.png").write_bytes(b"1")
    mirror._files = _Wrapped(mirror._files, "put_file", broken)
    with pytest.raises(Stopped, match="save pictures of before"), mirroring(mirror):
        pass
    assert [p.name for p in files_of(tmp_path / "b")] == ["a.png"]


def test_a_dead_workers_folder_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    script = "import experiment.workplace as w; print(w.Workplace().folder, flush=True); input()"
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environ, text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]  # fmt: skip
    folders = [Path(process.stdout.readline().strip()) for process in started if process.stdout]
    started[0].kill()
    started[0].communicate()
    mine = Workplace()
    assert [mine.folder.exists(), *map(Path.exists, folders)] == [True, False, True]
    started[1].communicate("\n")
    mine.leave()
    assert not folders[1].exists() and not mine.folder.exists()
    script = "import experiment.workplace as w; p = w.Workplace(); p.keep(); print(p.folder)"
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environ, text=True,
                           capture_output=True, check=True)  # fmt: skip
    kept = Path(ended.stdout.strip())
    Workplace().leave()
    assert kept.is_dir()


def test_a_run_at_a_url_is_the_same_and_goes_on_after_a_machine_is_lost(
    tmp_path: Path,
    ask: Ask,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import experiment.mirror
    import experiment.searching as searching

    whole = run(ask(), str(tmp_path / "one")).folder
    path = tmp_path / "config.json"
    written = ask().model_dump(mode="json", by_alias=True, exclude={"schema_", "ray_args"})
    path.write_text(json.dumps(written))
    words = ["--pipeline_config_path", str(path), "--output_dir", URL, "--resume", "auto"]
    done = searching.Experiment._done
    mirrors: list[Mirror] = []

    class Seen(Mirror):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            mirrors.append(self)

    def dying(self: Any, outcome: Any, progress: Any) -> None:
        done(self, outcome, progress)
        if outcome.prompt.index == 1:
            mirrors[-1].push()
            mirrors[-1].push = lambda: None
            raise Killed

    monkeypatch.setattr(experiment.mirror, "Mirror", Seen)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(searching.Experiment, "_done", dying)
        main(words)
    names = mirrors[-1].names()
    assert any(name.endswith("state/done.jsonl") for name in names)
    assert not any(name.endswith("summary.json") for name in names)
    assert main(words) == 0
    assert content(fetched(URL, tmp_path / "back")) == content(whole)
    assert not list(tmp_path.glob("run_*"))


def test_a_store_that_fails_leaves_the_results_here(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "a.png").write_bytes(b"1")
    mirror = Mirror(URL, here)

    mirror._files = _Wrapped(mirror._files, "put_file", broken)
    with pytest.raises(Stopped, match=f"no key.*{here}"), mirroring(mirror):
        pass
    assert (here / "a.png").exists()


@pytest.mark.parametrize(
    ("url", "resume", "said"),
    [
        (URL, "some/run", "--resume auto"),
        ("nowhere://bucket", None, "no place to write to"),
    ],
)
def test_urls_that_cannot_be(url: str, resume: str | None, said: str, ask: Ask) -> None:  # noqa: F811
    with pytest.raises(UserError, match=said), output_place(ask(), url, resume, None):
        pass


def test_shards_share_no_object_storage(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--pipeline_config_path", "configs/shapes_flux.json", "--output_dir", URL]
    assert main([*words, "--num_shards", "2", "--shard_index", "0"]) == 2
    assert "--executor ray" in capsys.readouterr().err
