"""Every registered search on both bundled pipelines: accounts, budgets, seeds; and a newcomer's."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiment.config import parse_config
from experiment.runner import Engine, Experiment, load, plan
from experiment.store import RunStore
from search import SEARCHES
from utils import ROOT

BUDGET = 44
STEPS = 4
PIPELINES = {
    "flux": {
        "rows_each": 1,
        "checkpoint": "shapes/models/shapes-flux",
        "call": {"max_sequence_length": 32},
    },
    "sd": {
        "rows_each": 2,
        "checkpoint": "shapes/models/shapes-sd",
        "call": {"guidance_scale": 4.0},
    },
}
OPTIONS = {"monitor": {"action": "reject"}, "ascent": {"iterations": 2}}


def config(pipeline: str, **changes: Any) -> dict[str, Any]:
    made = PIPELINES[pipeline]
    size = {"height": 32, "width": 32, "num_inference_steps": STEPS}
    return {
        "pretrained_model_name_or_path": made["checkpoint"],
        "torch_dtype": "fp32",
        "pipeline_call_args": {**size, **made["call"]},
        "verifier_args": {"name": "contrast"},
        "prompt": "a red circle",
        "engine_args": {"batch_size": 4},
        "budget": {"nfe": BUDGET},
        **changes,
    }


@pytest.fixture(scope="module", params=["flux", pytest.param("sd", marks=pytest.mark.slow)])
def engine(request: pytest.FixtureRequest) -> tuple[str, Engine]:
    asked = parse_config(config(request.param))
    return request.param, load(asked, plan(asked))


def searched(engine: tuple[str, Engine], method: str, folder: Path) -> dict[str, Any]:
    """What a run came to, times aside, and the denoiser's own count of rows."""
    name, loaded = engine
    search = {"search_method": method, **OPTIONS.get(method, {})}
    asked = parse_config(config(name, search_args=search))
    folder.mkdir()
    store = RunStore(folder, asked.export)
    planned = plan(asked)
    before = loaded.denoiser.rows
    Experiment(asked, loaded.denoiser, loaded.verifier, {}, store, planned, 4).run()
    lines = (folder / "candidates.jsonl").read_text().splitlines()
    total = json.loads((folder / "summary.json").read_text())["total"]
    return {
        "measured": loaded.denoiser.rows - before,
        "rows": [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines],
        "total": {k: v for k, v in total.items() if k != "seconds"},
        "images": {path.name: path.read_bytes() for path in folder.glob("*.png")},
    }


@pytest.mark.parametrize("method", SEARCHES)
def test_the_ledger_is_what_was_run_and_the_same_seed_is_the_same_run(
    engine: tuple[str, Engine], method: str, tmp_path: Path
) -> None:
    first = searched(engine, method, tmp_path / "first")
    nfe = sum(row["nfe"] for row in first["rows"])
    assert nfe == first["total"]["nfe"] <= BUDGET
    assert nfe > BUDGET - 2 * STEPS  # and it was used
    rows = sum(row["rows"] for row in first["rows"])
    assert rows == first["total"]["rows"]
    # Beside the search, a pipeline is once tried with two steps in a run.
    assert 0 <= first["measured"] - rows <= 2 * 4 * PIPELINES[engine[0]]["rows_each"]
    if method != "ascent":  # whose steps are taken twice and count three times
        assert rows == nfe * PIPELINES[engine[0]]["rows_each"]
    second = searched(engine, method, tmp_path / "second")
    assert {k: v for k, v in first.items() if k != "measured"} == {
        k: v for k, v in second.items() if k != "measured"
    }
    assert any(row["path"] for row in first["rows"])


@pytest.mark.slow
def test_the_readmes_search_runs_from_a_file_of_its_own(tmp_path: Path) -> None:
    """As a newcomer would: a file outside the project, named by its dotted path; budgets, records
    and a comparison need nothing more."""
    (code,) = re.findall(
        r"```python\n(from __future__ import annotations\n.*?class BestOfEight:.*?)```",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    (tmp_path / "mine.py").write_text(code)
    content = config("flux", search_args={"search_method": "mine:BestOfEight"})
    (tmp_path / "mine.json").write_text(json.dumps(content))
    comparison = {
        "name": "newcomer",
        "pipeline_config": str(tmp_path / "mine.json"),
        "methods": {
            "random": {"search_method": "random"},
            "mine": {"search_method": "mine:BestOfEight"},
        },
        "budgets": [8, 16],
        "seeds": [0],
    }
    (tmp_path / "comparison.json").write_text(json.dumps(comparison))
    for flags in (
        ["--pipeline_config_path", tmp_path / "mine.json"],
        ["--compare", tmp_path / "comparison.json"],
    ):
        done = subprocess.run(
            [sys.executable, ROOT / "main.py", *flags, "--output_dir", tmp_path / "out"],
            cwd=tmp_path,
            env={"OMP_NUM_THREADS": "1", "PATH": ""},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "out/compare/newcomer/table.json").read_text())
    assert "mine" in json.dumps(table)
    rows = [
        json.loads(line)
        for line in next(tmp_path.glob("out/shapes-flux/**/candidates.jsonl")).open()
    ]
    assert len(rows) == BUDGET // STEPS and {row["round"] for row in rows} == {1, 2}
