"""What users commonly get wrong is named with what to write instead, before anything loads."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from experiment.config import load_config, parse_config
from experiment.runner import run
from main import main
from pipelines.call_source import call_source
from pipelines.loading import pipeline_class
from pipelines.schedule import is_straight
from utils import ROOT, UserError

FLUX = "configs/shapes_flux.json"


def planned(*flags: str) -> int:
    return main([f"--pipeline_config_path={FLUX}", "--prompt=a red circle", "--dry_run", *flags])


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    said = capsys.readouterr()
    assert code == 2 and said.out == "" and said.err.count("\n") == 1, said
    return said.err


SETTINGS = [
    ("verifier_args.choice_of_metrics=x", "did you mean 'choice_of_metric'?"),
    ("verifier_args.frame_scores=min", "did you mean 'frame_score'?"),
    ("verifier_args.use_low_gpu_vram=true", "it is a key of the whole config"),
    ("search_args.search_round=2", "did you mean 'search_rounds'?"),
    ("search_args.search_method=path-search", "is 'paths' here: write 'num_paths' for 'N'"),
    ("torch_dtype=float64", "must be 'fp32', 'fp16' or 'bf16', not \"float64\""),
    ("engine_args.batch_size=big", "must be a whole number or 'auto', not \"big\""),
    ("engine_args=big", "must be keys and values in {}"),
    ("verifier_args.choice_of_metric=5", "must be text or keys and values in {}, not 5"),
    ("judges=[5]", "judges.0: must be keys and values in {}, not 5"),
    ("budget.nfe=0", "budget.nfe: must be at least 1, not 0"),
    ("pipeline_call_args.num_inference_step=5", "did you mean 'num_inference_steps'?"),
    ('scheduler={"_class_name": "EulerDiscreteScheduler"}', "or leave 'scheduler' out"),
    ('scheduler={"_class_name": "FlowMatchHeunDiscreteScheduler"}', "does not take the 'mu'"),
    ('scheduler={"_class_name": "UniPCMultistepScheduler"}', 'add "prediction_type"'),
]


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting[0])
def test_a_dry_run_says_what_to_write(
    setting: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    given, said = setting
    assert said in refused(capsys, planned("--set", given))


def test_options_of_the_former_path_search_are_translated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    method = ("--set", "search_args.search_method=paths")
    assert "it is 'num_paths' here" in refused(capsys, planned(*method, "--set=search_args.N=4"))
    assert "leave it out" in refused(capsys, planned(*method, "--set=search_args.L=10"))


def test_former_flags_are_translated(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--verifier_to_use=qwen", "--search_rounds", "2", "--width"])
    assert (
        "give --set verifier_args.name=qwen --set search_args.search_rounds=2 --set"
        " pipeline_call_args.width=..." in refused(capsys, code)
    )


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--compare", FLUX], "give it with --pipeline_config_path"),
        (["--pipeline_config_path=configs/compare/quick.json"], "give it with --compare"),
        (["--pipeline_config_path=configs"], "'configs' is a folder: name a config in it"),
        (["--resume", "no/where", "--dry_run"], "There is no run in 'no/where'"),
        (
            ["--resume=no/where", "--dry_run", f"--pipeline_config_path={FLUX}"],
            "There is no run in 'no/where'",
        ),
        (["--num_shards=2", "--dry_run", f"--pipeline_config_path={FLUX}"], "go together"),
    ],
)
def test_swapped_and_missing_files_are_told(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, main(flags))


@pytest.mark.parametrize("judges", ["shapes_oracle", ["shapes_oracle"], {"name": "shapes_oracle"}])
def test_a_judge_may_be_its_name_alone(judges: Any) -> None:
    config = load_config(FLUX, {"judges": judges, "torch_dtype": "float32"})
    assert config.resolved()["judges"] == [
        {"name": "shapes_oracle", "choice_of_metric": "oracle_score"}
    ]
    assert config.torch_dtype == "fp32"


@pytest.mark.parametrize("method", ["svdd", "halving", "tests.searches:Halving"])
def test_a_search_that_stops_midway_is_refused_for_a_single_step(
    method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = ("--set", "pipeline_call_args.num_inference_steps=1")
    code = planned("--set", f"search_args.search_method={method}", *steps)
    assert f"'{method}' stops between steps, and a single step" in refused(capsys, code)


def test_a_plan_notes_a_search_that_never_stops(capsys: pytest.CaptureFixture[str]) -> None:
    paths = ("--set", "search_args.search_method=paths")
    assert planned(*paths, "--set", "search_args.sigma=0") == 0
    assert "note          paths never stops between steps here" in capsys.readouterr().out
    assert planned(*paths) == 0
    assert "note" not in capsys.readouterr().out


def test_one_of_anything_is_no_plural(capsys: pytest.CaptureFixture[str]) -> None:
    assert planned("--set", "search_args.search_rounds=1") == 0
    assert "1 round, 2 images" in capsys.readouterr().out


def test_a_prompt_that_an_oracle_cannot_read_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {
        **json.loads((ROOT / FLUX).read_text()),
        "prompt": "a corgi on the moon",
        "verifier_args": {"name": "tests.graders:Brightness"},
        "search_args": {"search_rounds": 1},
        "pipeline_call_args": {"height": 64, "width": 64, "num_inference_steps": 1},
    }
    run(parse_config(content), str(tmp_path))
    note = "shapes_oracle cannot read 1 of 1 prompt, so images of it get no score"
    assert capsys.readouterr().err.count(note) == 1


def test_the_source_of_a_call_says_what_the_class_says() -> None:
    for model, handed in (("shapes-flux", {"mu"}), ("shapes-sd", set())):
        build = pipeline_class(str(ROOT / "shapes/models" / model))
        source = call_source(build.__name__)
        assert source is not None and source.hands == handed
        named = inspect.signature(build.__call__).parameters.values()
        assert source.takes == {p.name for p in named if p.kind is not p.VAR_KEYWORD} - {"self"}
    assert call_source("NoSuchPipeline") is None
    some = call_source("EasyAnimatePipeline")  # hands `mu` to flow schedulers alone
    assert some is not None and not some.hands


@pytest.mark.parametrize("key", ["SearchArgs", "float", "none", "engine_args.int"])
def test_a_key_may_have_any_name(key: str) -> None:
    *part, last = key.split(".")
    content = {
        "pretrained_model_name_or_path": "x",
        **({part[0]: {last: 3}} if part else {last: 3}),
    }
    with pytest.raises(UserError, match=f"^Unknown key '{key}'"):
        parse_config(content)


def test_a_straight_way_is_read_off_the_scheduler() -> None:
    flow = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    flags = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    assert is_straight(flow)
    assert is_straight(UniPCMultistepScheduler.from_config(flow.config, **flags))
    assert is_straight(UniPCMultistepScheduler.from_config(flow.config)) is False
    assert is_straight(DDIMScheduler()) is False


@pytest.mark.parametrize(
    "argv",
    [
        ["main.py", "--list"],
        ["main.py", "--prompt=x", "--dry_run"],
        ["main.py", "--compare", "configs/compare/quick.json"],
        ["process_results.py", "--path", "configs"],
    ],
)
def test_a_python_without_the_packages_says_how_to_get_them(argv: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-S", *argv], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "has no torch, diffusers" in done.stderr
    assert "pip install -r requirements.txt" in done.stderr
