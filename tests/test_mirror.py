"""Runs at a URL: a copy from which they can go on at every moment."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from experiment.mirror import Mirror, mirroring, output_place
from experiment.runner import run
from experiment.stops import Stopped
from main import main
from tests.interrupted import Killed, content
from tests.test_shards import Ask, ask  # noqa: F401
from utils import UserError

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

    def broken(*_: Any) -> None:
        raise PermissionError("no key")

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
