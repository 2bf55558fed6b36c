"""Where compiled kernels are kept: beside what else is worked out once, not in /tmp."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

from pipelines.compiling import KEPT, compile_denoisers


def kept() -> Path:
    """Where torch keeps what is compiled from now on."""
    compile_denoisers([nn.Linear(1, 1)])
    return Path(cache_dir())


def test_kernels_are_kept_in_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where torch has chosen its own folder before, as it does when diffusers is imported."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ours = tmp_path / "inference-time-scaling" / "inductor"
    monkeypatch.setenv(KEPT, default_cache_dir())
    assert kept() == kept() == ours
    monkeypatch.delenv(KEPT)
    assert kept() == ours


def test_kernels_are_kept_where_the_user_says_and_where_files_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    monkeypatch.setenv(KEPT, str(tmp_path / "own"))
    assert kept() == tmp_path / "own" and not caplog.text
    monkeypatch.setenv(KEPT, default_cache_dir())
    assert kept() == Path(default_cache_dir()) and "are kept in" in caplog.text


COMPILED = """
import torch, experiment.runner
from pipelines.compiling import KEPT, compile_denoisers
layer = torch.nn.Linear(4, 4)
compile_denoisers([layer])
with torch.no_grad():
    layer(torch.ones(2, 4))
"""


@pytest.mark.slow
def test_what_is_compiled_lies_in_the_cache_folder(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != KEPT}
    environ |= {"XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", COMPILED], env=environ, check=True)
    ours = tmp_path / "inference-time-scaling" / "inductor"
    assert any(path.is_file() for path in (ours / "fxgraph").rglob("*"))
