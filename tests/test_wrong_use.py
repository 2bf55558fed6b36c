"""What a pipeline, a device or the hub will not do: one sentence, exit code 2, before weights."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from experiment.config import parse_config
from experiment.runner import run
from main import main
from pipelines.loading import check_dtype
from tests.families import FAMILIES, PROMPT
from utils import UserError

SD = "shapes/models/shapes-sd"
CALL = {"num_inference_steps": 2}


def content(checkpoint: str = SD, **changes: Any) -> dict[str, Any]:
    return {
        "pretrained_model_name_or_path": checkpoint,
        "torch_dtype": "fp32",
        "pipeline_call_args": CALL,
        "verifier_args": {"name": "tests.graders:Brightness"},
        "search_args": {"search_rounds": 1},
        "prompt": PROMPT,
        **changes,
    }


def refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], *flags: str
) -> str:
    """The one sentence that a run of this config ends with, nothing written."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert main([f"--pipeline_config_path={path}", f"--output_dir={tmp_path}/o", *flags]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1, said.err
    assert not (tmp_path / "o").exists()
    return said.err


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading weights fails the test."""

    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.setattr("experiment.runner.load_pipeline", loads)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"scheduler": {"_class_name": "DDIMPipeline"}}, "DDIMPipeline, is none: name one"),
    ({"scheduler": {"_class_name": "UNet2DModel"}}, "UNet2DModel, is none"),
    ({"scheduler": {"_class_name": "randn_tensor"}}, "diffusers does not have"),
    ({"scheduler": {"_class_name": "logging"}}, "logging, is none"),
    (
        {"scheduler": {"_class_name": "DDIMScheduler", "beta_schedule": "steep"}},
        "DDIMScheduler cannot be set up as the config says: steep",
    ),
    ({"pipeline_call_args": {**CALL, "latents": [1]}}, "'latents' cannot stand in"),
    ({"pipeline_call_args": {**CALL, "num_images_per_prompt": 2}}, "size of the pool"),
    ({"pipeline_call_args": {**CALL, "num_frames": 9}}, "takes no call argument 'num_frames'"),
    ({"pipeline_call_args": {**CALL, "guidence_scale": 9}}, "did you mean 'guidance_scale'"),
    ({"verifier_args": {"name": "tests.graders:Motion"}}, "judges videos, and Stable"),
    ({"judges": [{"name": "tests.graders:Motion"}]}, "makes images: choose another verifier"),
    (
        {
            "verifier_args": {
                "name": "ensemble",
                "verifiers": [{"name": "contrast"}, {"name": "tests.graders:Motion", "weight": 1}],
            }
        },
        "'tests.graders:Motion' judges videos",
    ),
    ({"pretrained_model_name_or_path": "someone/thing"}, "`hf download someone/thing`"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: str(case[0]))
def test_wrong_use_is_refused_before_weights_load(
    case: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], no_loading: None
) -> None:
    changes, said = case
    assert said in refused(tmp_path, capsys, content(**changes))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    names = ("sd15", "sd3", "wan")
    for name in names:
        FAMILIES[name].build().save_pretrained(root / name)
    return {name: str(root / name) for name in names}


@pytest.mark.parametrize(
    ("name", "call", "said"),
    [
        ("sd15", {"height": 60, "width": 64}, "have to be divisible by 8 but are 60 and 64"),
        ("sd3", {"height": 33, "width": 32}, "divisible by 2 but are 33 and 32"),
        ("wan", {"height": 20, "width": 16, "num_frames": 9}, "divisible by 16 but are 20 and 16"),
        ("sd15", {"height": "tall", "width": 64}, "refuses its call arguments"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_before_denoising(
    name: str,
    call: dict[str, Any],
    said: str,
    models: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forward(*_: Any, **__: Any) -> None:
        raise AssertionError("something was denoised")

    family = FAMILIES[name].build()
    denoiser = type(getattr(family, "unet", None) or family.transformer)
    monkeypatch.setattr(denoiser, "forward", forward)
    err = refused(tmp_path, capsys, content(models[name], pipeline_call_args={**CALL, **call}))
    assert "The pipeline refuses its call arguments" in err and said in err


def test_an_image_verifier_is_shown_a_videos_frames(models: dict[str, str], tmp_path: Path) -> None:
    """The reverse of a video verifier with an image pipeline is no mistake."""
    call = {**FAMILIES["wan"].call_args, "num_inference_steps": 1}
    config = content(models["wan"], pipeline_call_args=call, verifier_args={"name": "contrast"})
    folder = run(parse_config(config), str(tmp_path)).folder
    rows = [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]
    assert {row["status"] for row in rows} == {"ok"}


def test_fp16_runs_on_a_cpu(models: dict[str, str], tmp_path: Path) -> None:
    """It is slow there, and right: what a checkpoint is stored in may be asked for anywhere."""
    folder = run(parse_config(content(models["sd15"], torch_dtype="fp16")), str(tmp_path)).folder
    rows = [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]
    assert {row["status"] for row in rows} == {"ok"}


def test_a_format_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype in ("fp32", "bf16", "fp16"):
        check_dtype(dtype, "cpu")
    # Stands for a GPU of before 2020, which this machine has not.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    with pytest.raises(UserError, match=r"bf16 only by emulation.*set torch_dtype to fp16"):
        check_dtype("bf16", "cuda")
    with pytest.raises(UserError, match="cannot compute in bf16: set torch_dtype to fp32"):
        check_dtype("bf16", "mps")  # which this machine has not either


# A hub on this machine, which answers as huggingface.co does.


@contextmanager
def hub(monkeypatch: pytest.MonkeyPatch, cache: Path, status: int, code: str) -> Iterator[str]:
    """Every file is refused with this status and the hub's name for the reason."""

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", "no")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    with monkeypatch.context() as patched:
        patched.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patched.setattr("huggingface_hub.constants.ENDPOINT", address)
        patched.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        patched.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        try:
            yield address
        finally:
            server.shutdown()
            server.server_close()


def test_a_gated_checkpoint_says_how_to_log_in(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    no_loading: None,
) -> None:
    with hub(monkeypatch, tmp_path / "cache", 403, "GatedRepo") as address:
        err = refused(tmp_path, capsys, content("someone/gated"))
    assert f"it is gated, so accept its licence at {address}/someone/gated" in err
    assert "log in with `hf auth login`" in err


def test_a_checkpoint_that_the_hub_does_not_know_says_so(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    no_loading: None,
) -> None:
    with hub(monkeypatch, tmp_path / "cache", 404, "RepoNotFound"):
        err = refused(tmp_path, capsys, content("someone/misspelt"))
    assert "check its name, or, if it is private, log in with `hf auth login`" in err
    assert "'someone/misspelt'" in err


def test_a_hub_out_of_reach_says_how_to_do_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_loading: None
) -> None:
    err = refused(tmp_path, capsys, content("someone/absent"))
    assert "HF_HUB_OFFLINE is set and the cache does not hold it" in err
    assert "fetch it where there is a network with `hf download someone/absent`" in err


def test_a_hub_that_does_not_answer_is_told_from_a_file_that_it_has_not(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    no_loading: None,
) -> None:
    with hub(monkeypatch, tmp_path / "cache", 404, "") as gone:
        pass  # its port is closed from here on
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", gone)
    template = gone + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub's client tries again
    err = refused(tmp_path, capsys, content("someone/thing"))
    assert f"the hub at {gone} cannot be reached" in err
    assert "Connection refused" in err and "`hf download someone/thing`" in err
