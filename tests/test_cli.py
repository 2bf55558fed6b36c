"""The command line: wrong use is one sentence and exit code 2, before anything loads."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from main import main

FLUX = "configs/shapes_flux.json"
BASE: dict[str, Any] = json.loads(Path(__file__).parents[1].joinpath(FLUX).read_text())


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model, or making an output folder, fails the test."""

    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("something was loaded")

    for key in ("GEMINI_API_KEY", "GOOGLE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr("experiment.runner.load_pipeline", loads)
    monkeypatch.setattr("verifiers.base.Chosen.load", loads)
    monkeypatch.setattr("experiment.store.RunStore.create", loads)


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], *said: str) -> None:
    code = main(argv)
    out = capsys.readouterr()
    assert code == 2
    assert out.out == ""
    assert out.err.count("\n") == 1, f"one sentence, not {out.err!r}"
    for words in said:
        assert words in out.err


def written(tmp_path: Path, content: Any) -> str:
    path = tmp_path / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


CONFIGS = [
    ({"serach_args": {}}, "'serach_args'", "did you mean 'search_args'"),
    ({"budget": {"nef": 3}}, "'budget.nef'", "did you mean 'nfe'"),
    ({"pipeline_call_args": 3}, "pipeline_call_args"),
    ({"torch_dtype": "float8"}, "torch_dtype", "bf16"),
    ({"seed": "zero"}, "seed"),
    ({"num_prompts": 0}, "num_prompts", "at least 1"),
    ({"batch_size_for_img_gen": 0}, "batch_size_for_img_gen"),
    ({"engine_args": {"batch_size": 0}}, "engine_args.batch_size", "at least 1"),
    ({"verifier_args": {"name": "clipp"}}, "clipp", "did you mean 'clip'"),
    ({"verifier_args": {"name": "zzz"}}, "no verifier 'zzz'", "known:", "shapes_oracle"),
    ({"verifier_args": {"name": "clip", "choice_of_metric": "x"}}, "no metric 'x'", "clip_score"),
    ({"verifier_args": {"name": "clip", "modelname": "x"}}, "did you mean 'model_name'"),
    ({"verifier_args": {"name": "clip", "model_name": "./no/where"}}, "no checkpoint './no/where'"),
    ({"verifier_args": {"name": "gemini"}}, "needs a key", "GEMINI_API_KEY"),
    ({"verifier_args": {"name": "no.such:Thing"}}, "cannot be imported"),
    ({"verifier_args": {"name": "clip", "batch_size": "big"}}, "verifier_args.batch_size", '"big"'),
    ({"verifier_args": {"name": "gemini", "api_key": "s3cret"}}, "no option 'api_key'"),
    ({"verifier_args": {"name": "openai"}}, "OPENAI_API_KEY"),
    ({"verifier_args": {"name": "qwen", "model_name": "./none"}}, "no checkpoint './none'"),
    ({"verifier_args": {"name": "http"}}, "url"),
    (
        {"verifier_args": {"name": "http", "metrics": ["a"], "choice_of_metric": "b"}},
        "no metric 'b'",
    ),
    ({"verifier_args": {"name": "ensemble"}}, "needs members"),
    (
        {
            "verifier_args": {
                "name": "ensemble",
                "verifiers": [{**BASE["verifier_args"], "batch_size": "big"}],
            }
        },
        "batch_size",
    ),
    (
        {
            "verifier_args": {
                "name": "ensemble",
                "verifiers": [{"name": "contrast", "choice_of_metric": 5}],
            }
        },
        "choice_of_metric",
    ),
    ({"verifier_args": {"name": "collections:Counter"}}, "is no verifier"),
    ({"search_args": {"search_method": "json:dumps"}}, "is no search method"),
    ({"search_args": {"search_rounds": 60}}, "candidates at once"),
    ({"pipeline_call_args": {"num_inference_steps": True}}, "whole number"),
    ({"budget": {"seconds": float("inf")}}, "budget.seconds"),
    ({"prompt": "  "}, "blank"),
    (
        {"judges": [{"name": "self_similarity", "model_name": "shapes/models/shapes-clip"}]},
        "not a judge",
    ),
    ({"judges": [{"name": "clipp"}]}, "did you mean 'clip'"),
    ({"search_args": {"search_method": "randm"}}, "did you mean 'random'"),
    ({"search_args": {"search_method": "zzz"}}, "known: ascent, code"),
    ({"search_args": {"search_rounds": 0}}, "search_args.search_rounds", "not 0"),
    ({"search_args": {"search_method": "random", "pol": 1}}, "did you mean 'pool'"),
    ({"search_args": {"search_method": "random", "pool": "big"}}, "search_args.pool", "nested"),
    (
        {"search_args": {"search_method": "zero-order", "threshold": 1.5}},
        "threshold is a cosine within [-1, 1], not 1.5",
    ),
    (
        {"search_args": {"search_method": "zero-order", "num_neighbors": "four"}},
        "search_args.num_neighbors",
        '"four"',
    ),
    ({"budget": {"nfe": 5}}, "cannot finish one image of 20 steps"),
    (
        {"search_args": {"search_method": "ascent"}, "verifier_args": {"name": "shapes_oracle"}},
        "'ascent' climbs the verifier's gradient, but 'shapes_oracle'",
        "has none: use one metric of clip",
    ),
    (
        {
            "search_args": {"search_method": "steering"},
            "verifier_args": {
                "name": "ensemble",
                "combine": "rank",
                "verifiers": [{"name": "contrast"}, {"name": "shapes_oracle"}],
            },
        },
        "'steering' compares scores over time, but ranks change",
        '"zscore"',
    ),
    (
        {"search_args": {"search_method": "draft", "inner": {"search_method": "paths"}}},
        "'paths' does more than choose an initial noise",
    ),
    (
        {"search_args": {"search_method": "draft", "inner": {"search_method": "zero"}}},
        "no search method 'zero'",
    ),
    ({"pipeline_call_args": {"latents": 1}}, "'latents'", "the search chooses them"),
    ({"pipeline_call_args": {"num_images_per_prompt": 4}}, "size of the pool"),
    ({"pipeline_call_args": {"num_inference_steps": "many"}}, "whole number", "'many'"),
    ({"pipeline_call_args": {"guidence_scale": 3.0}}, "did you mean 'guidance_scale'"),
    ({"pretrained_model_name_or_path": "./no/model"}, "no checkpoint './no/model'"),
    ({"pretrained_model_name_or_path": "owner/absent"}, "'owner/absent' is neither"),
    ({"pretrained_model_name_or_path": "shapes/models"}, "no model_index.json"),
    ({"engine_args": {"device": "cuda"}}, "no device 'cuda' here"),
]


@pytest.mark.parametrize("case", CONFIGS, ids=lambda case: next(iter(case[0])))
def test_a_wrong_config_is_refused(
    case: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_loading: None
) -> None:
    changes, *said = case
    path = written(tmp_path, {**BASE, "prompt": "a red circle", **changes})
    argv = [f"--pipeline_config_path={path}", f"--output_dir={tmp_path}/o"]
    refused(capsys, argv, *said)
    assert not (tmp_path / "o").exists()


def test_a_search_that_cuts_is_refused_with_a_scheduler_that_remembers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_loading: None
) -> None:
    folder = tmp_path / "model"
    shutil.copytree("shapes/models/shapes-sd/scheduler", folder / "scheduler")
    index = json.loads(Path("shapes/models/shapes-sd/model_index.json").read_text())
    index["scheduler"] = ["diffusers", "DPMSolverMultistepScheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    content = {**BASE, "pretrained_model_name_or_path": str(folder), "prompt": "x"}
    content["search_args"] = {"search_method": "tests.searches:Halving"}
    argv = [f"--pipeline_config_path={written(tmp_path, content)}"]
    refused(capsys, argv, "DPMSolverMultistepScheduler keeps a history", "DDIMScheduler")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1,}', ["line 1, column"]),
        ('{\n "seed" 3}', ["line 2, column 9"]),
        ("", ["line 1"]),
        ("[]", ["JSON object"]),
        ('{"seed": 1, "seed": 2}', ["'seed' stands twice"]),
        ("{}", ["'pretrained_model_name_or_path' is missing"]),
    ],
)
def test_a_malformed_file_is_refused(
    text: str, said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, [f"--pipeline_config_path={written(tmp_path, text)}", "--prompt=x"], *said)


FLAGS = [
    (
        ["--pipeline_config_path=configs/shapes_fluxx.json"],
        "did you mean 'configs/shapes_flux.json'",
    ),
    (["--prompt=x", "--num_prompts=3"], "not both"),
    (["--num_prompts=None"], "goes with --prompt"),
    (["--num_prompts=three"], "'three'"),
    (["--num_prompts=-1"], "num_prompts"),
    (["--seed=-1", "--prompt=x"], "seed"),
    (["--promt=x"], "--promt"),
    (["--prompt=x", "--set", "seed"], "KEY=VALUE"),
    (["--prompt=x", "--set", "torch_dtype.deep=1"], "--set torch_dtype.deep"),
    (["--prompt=x", "--set", "search_args.search_rounds=no"], "search_rounds"),
    (["--prompt=x", "--output_dir=README.md/out"], "Nothing can be written to 'README.md/out'"),
    (["--set", "prompts=no_such_file.txt"], "no prompt file 'no_such_file.txt'"),
]


@pytest.mark.parametrize("case", FLAGS, ids=lambda case: " ".join(case[0]))
def test_wrong_flags_are_refused(
    case: Any, capsys: pytest.CaptureFixture[str], no_loading: None
) -> None:
    flags, *said = case
    if not flags[0].startswith("--pipeline"):
        flags = [f"--pipeline_config_path={FLUX}", *flags]
    refused(capsys, flags, *said)


@pytest.mark.parametrize("content", ["", "\n  \n\t\n"])
def test_an_empty_prompt_file_is_refused(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_loading: None
) -> None:
    (tmp_path / "p.txt").write_text(content)
    refused(
        capsys,
        [f"--pipeline_config_path={FLUX}", "--set", f"prompts={tmp_path}/p.txt"],
        "holds no prompt",
    )


def test_a_prompt_file_in_another_encoding_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_loading: None
) -> None:
    (tmp_path / "p.txt").write_bytes("café".encode("latin-1"))
    argv = [f"--pipeline_config_path={FLUX}", "--set", f"prompts={tmp_path}/p.txt"]
    refused(capsys, argv, "cannot be read as UTF-8")


def test_prompt_alone_works_and_none_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--num_prompts=None"]):
        assert main(["--dry_run", f"--pipeline_config_path={FLUX}", "--prompt=x", *more]) == 0
        assert "prompts       1: x" in capsys.readouterr().out


def test_two_prompts_are_the_default_and_all_means_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--dry_run", f"--pipeline_config_path={FLUX}"]) == 0
    assert "prompts       2:" in capsys.readouterr().out
    assert main(["--dry_run", f"--pipeline_config_path={FLUX}", "--num_prompts=all"]) == 0
    assert "prompts       200:" in capsys.readouterr().out


def test_flags_override_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--dry_run", f"--pipeline_config_path={FLUX}", "--prompt=x"]
    assert main([*argv, "--set", "search_args.search_rounds=2"]) == 0
    assert "2 rounds, 6 images" in capsys.readouterr().out
    assert main([*argv, "--set", "search_args.search_method=zero-order"]) == 0
    assert "zero-order (search_rounds=4, threshold=0.95" in capsys.readouterr().out


def test_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    out = capsys.readouterr().out
    for name in ("configs/flux.1_dev.json", "clip", "shapes_oracle", "random", "zero-order"):
        assert f"  {name} " in out


def child(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, **options)


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    code = (
        "import resource, sys; sys.argv = ['main.py', '--help']\n"
        "import main\n"
        "try: main.main()\n"
        "except SystemExit: pass\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'pydantic', 'numpy', 'PIL'}\n"
        "print('HEAVY', heavy & set(sys.modules), used.ru_utime + used.ru_stime)"
    )
    said = child("-c", code).stdout.splitlines()[-1]
    assert said.startswith("HEAVY set()")
    assert float(said.split()[-1]) < 0.3  # CPU seconds


@pytest.mark.parametrize("config", ["flux.1_dev.json", "shapes_flux.json"])
def test_a_dry_run_imports_no_models(config: str) -> None:
    code = (
        "import sys, main\n"
        "flags = ['--dry_run', '--prompt=x']\n"
        f"code = main.main([*flags, '--pipeline_config_path=configs/{config}'])\n"
        "models = [m for m in sys.modules if m.startswith(('diffusers.models', 'transformers'))]\n"
        "print('CODE', code, models)"
    )
    assert child("-c", code).stdout.splitlines()[-1] == "CODE 0 []"


def test_exit_codes_reach_the_shell(tmp_path: Path) -> None:
    done = child("main.py", "--prompt=x", "--pipeline_config_path=nowhere.json")
    assert done.returncode == 2
    assert done.stdout == "" and done.stderr.count("\n") == 1
