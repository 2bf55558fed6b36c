"""Where prompts come from: tables, named sets in the hub's cache, datasets."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiment import packages, prompt_sets
from experiment.config import load_config, parse_config
from experiment.prompts import Prompt, load_prompts
from main import main
from utils import UserError

FLUX = "configs/shapes_flux.json"
ROWS = [
    {"No.": "1", "Prompts": "a red cat", "Category": "Colors"},
    {"No.": "2", "Prompts": ' two dogs, "sitting"\nin a row ', "Category": "Counting"},
    {"No.": "3", "Prompts": "", "Category": "Counting"},
    {"No.": "4", "Prompts": "a red cat", "Category": ""},
]
PAIRS = [
    ("a red cat", "Colors"),
    ('two dogs, "sitting"\nin a row', "Counting"),
    ("a red cat", None),
]


def prompts(source: object, number: int | str = "all", **keys: Any) -> list[Prompt]:
    base = {"pretrained_model_name_or_path": "a/b", "prompts": str(source), "num_prompts": number}
    return load_prompts(parse_config({**base, **keys}))


def pairs(source: object, **keys: Any) -> list[tuple[str, str | None]]:
    return [(prompt.text, prompt.category) for prompt in prompts(source, **keys)]


def table(path: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """The rows in the format that the file's name asks for."""
    rows = ROWS if rows is None else rows
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter=",\t"[path.suffix == ".tsv"])
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A hub cache of our own; call it with a repository to get the folder of its files."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def repository(name: str) -> Path:
        folder = tmp_path / "hub" / f"datasets--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("c0ffee")
        (folder / "snapshots" / "c0ffee").mkdir(parents=True)
        return folder / "snapshots" / "c0ffee"

    return repository


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".CSV"])
def test_every_kind_of_table_gives_the_same_prompts(tmp_path: Path, suffix: str) -> None:
    path = table(tmp_path / f"p{suffix}")
    found = prompts(path)
    assert [(prompt.text, prompt.category) for prompt in found] == PAIRS
    assert [prompt.occurrence for prompt in found] == [0, 0, 1]
    assert len({prompt.stem for prompt in found}) == 3
    assert pairs(path, prompts_column="No.")[0] == ("1", "Colors")
    assert pairs(path, prompts_column="category")[0] == ("Colors", "Colors")  # case is forgiven


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        (["caption", "text", "PROMPT"], "PROMPT"),
        (["caption", "Text", "other"], "Text"),
        (["caption", "other"], "caption"),
        (["category", "description", "number"], "description"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_the_column_is_found_by_name_or_by_being_the_only_text(
    tmp_path: Path, columns: list[str], chosen: str, suffix: str
) -> None:
    number: Any = "7" if suffix == ".csv" else 7
    row = {name: number if name == "number" else f"the {name}" for name in columns}
    assert pairs(table(tmp_path / f"p{suffix}", [row]))[0][0] == f"the {chosen}"


def test_an_unclear_column_lists_all_of_them(tmp_path: Path) -> None:
    path = table(tmp_path / "p.csv", [{"a": "one", "b": "two", "n": "3"}])
    with pytest.raises(UserError, match=r"set prompts_column to one of a, b, n\.$"):
        prompts(path)
    with pytest.raises(UserError, match="no column 'bb': did you mean 'b'"):
        prompts(path, prompts_column="bb")
    assert pairs(path, prompts_column="b") == [("two", None)]


def test_a_column_of_numbers_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "p.jsonl", [{"prompt": "a cat"}, {"prompt": 7}])
    with pytest.raises(UserError, match=r"Row 2 of .* has no text in the column 'prompt'"):
        prompts(path)


def test_a_table_that_writes_quotes_as_they_are_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "p.tsv"
    path.write_text('Prompt\tCategory\n"Fly" on a wall\tWords\na "hello" sign\tWords\n')
    assert pairs(path) == [('"Fly" on a wall', "Words"), ('a "hello" sign', "Words")]


def test_a_json_object_of_objects_is_a_table_by_ids(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"0": {"prompt": "a"}, "1": {"prompt": "b"}}))
    assert pairs(path) == [("a", None), ("b", None)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt":\n', "line 2 is not JSON"),
        ("p.jsonl", b"[1]\n", "named columns"),
        ("p.json", b"{", "cannot be read"),
        ("p.json", b"7", "cannot be read"),
        ("p.csv", "prompt\ncafé\n".encode("latin-1"), "cannot be read"),
        ("p.parquet", b"PAR1", "cannot be read"),
        ("p.csv", b"", "holds no prompt"),
        ("p.csv", b"prompt\n", "holds no prompt"),
        ("p.jsonl", b"\n", "holds no prompt"),
    ],
)
def test_damaged_and_empty_tables_are_named(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        prompts(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_parquet_without_pyarrow_and_datasets_without_datasets_say_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = table(tmp_path / "p.parquet")
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs pyarrow: pip install pyarrow"):
        prompts(path)
    with pytest.raises(UserError, match="needs datasets: pip install datasets"):
        prompts("owner/name")


def test_a_number_above_what_there_is_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = table(tmp_path / "p.csv")
    assert len(prompts(path, 2)) == 2
    assert len(prompts(path, 3)) == 3
    assert len(prompts(path, "all")) == 3
    assert capsys.readouterr().err == ""
    assert len(prompts(path, 9)) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "num_prompts is 9" in line and "holds 3" in line


def test_prompt_beside_prompts_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--pipeline_config_path={FLUX}", "--dry_run", "--prompt=x"]
    assert main([*flags, "--set", "prompts=shapes/prompts.txt"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "not both" in line
    assert main(flags) == 0  # the config's own prompts give way


def test_a_missing_file_names_what_else_there_is() -> None:
    with pytest.raises(UserError, match=r"no prompt file 'drawbnch'.*did you mean 'drawbench'"):
        prompts("drawbnch")
    with pytest.raises(UserError, match=r"no prompt file 'a/b\.csv'"):
        prompts("a/b.csv")
    with pytest.raises(UserError, match="--set prompts=open_image_preferences"):
        load_prompts(parse_config({"pretrained_model_name_or_path": "a/b"}))


def test_a_text_file_has_no_columns_and_a_file_no_splits() -> None:
    with pytest.raises(UserError, match="leave prompts_column unset"):
        prompts("shapes/prompts.txt", prompts_column="prompt")
    with pytest.raises(UserError, match="leave prompts_split unset"):
        prompts("shapes/prompts.txt", prompts_split="train")


# ---- named sets


def test_drawbench_comes_from_the_hubs_cache_with_its_categories(
    hub: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    table(hub("sayakpaul/drawbench") / "DrawBench Prompts - Sheet1.csv", ROWS)
    assert pairs("drawbench") == PAIRS
    argv = [f"--pipeline_config_path={FLUX}", "--set", "prompts=drawbench", "--num_prompts=all"]
    assert main([*argv, "--dry_run"]) == 0
    assert "prompts       3: a red cat" in capsys.readouterr().out


def test_parti_pick_a_pic_and_genai_bench_come_from_the_hubs_cache(
    hub: Callable[..., Path],
) -> None:
    rows = [{"Prompt": "a fox", "Category": "Animals", "Challenge": "Basic", "Note": ""}]
    table(hub("nateraw/parti-prompts") / "PartiPrompts.tsv", rows)
    assert pairs("parti") == [("a fox", "Animals")]

    data = hub("yuvalkirstain/pickapic_v1_no_images") / "data"
    data.mkdir()
    table(data / "test_unique-00000-of-00001-ab12.parquet", [{"caption": "a pie", "url": "x"}])
    table(data / "train-00000-of-00001-ab12.parquet", [{"caption": "not this", "url": "x"}])
    assert pairs("pick_a_pic") == [("a pie", None)]

    bench = hub("BaiqiL/GenAI-Bench-1600")
    entries = {f"{i:05d}": {"id": f"{i:05d}", "prompt": f"p{i}"} for i in range(3)}
    (bench / "genai_image.json").write_text(json.dumps(entries))
    skills = {"counting": [1], "basic": [0], "advanced": [1], "all": [0, 1]}
    (bench / "genai_skills.json").write_text(json.dumps(skills))
    assert pairs("genai_bench") == [("p0", "basic"), ("p1", "advanced"), ("p2", None)]


def test_geneval_and_t2i_compbench_come_from_files_fetched_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "prompt_sets" / "geneval"
    folder.mkdir(parents=True)
    row = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "two cats"}
    table(folder / "evaluation_metadata.jsonl", [row])
    assert pairs("geneval") == [("two cats", "counting")]

    folder = tmp_path / "prompt_sets" / "t2i_compbench"
    folder.mkdir()
    for name in prompt_sets.COMPOSITIONS:
        (folder / f"{name}_val.txt").write_text(f"a {name} prompt\n\n")
    assert pairs("t2i_compbench") == [
        (f"a {name} prompt", name) for name in prompt_sets.COMPOSITIONS
    ]


@pytest.mark.parametrize("name", sorted(prompt_sets.NAMED))
def test_a_set_that_is_not_here_names_the_command_that_fetches_it(
    hub: Callable[..., Path],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "none")
    argv = [f"--pipeline_config_path={FLUX}", "--dry_run", "--set", f"prompts={name}"]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    kept = prompt_sets.NAMED[name]
    if isinstance(kept, prompt_sets.WebFiles):
        assert f'--output "prompt_sets/{name}/' in line and kept.address in line
    else:
        assert f"run hf download {kept.repository} --repo-type dataset" in line


def test_half_a_set_in_the_cache_is_none(hub: Callable[..., Path]) -> None:
    (hub("BaiqiL/GenAI-Bench-1600") / "genai_image.json").write_text("{}")
    with pytest.raises(UserError, match="hf download BaiqiL/GenAI-Bench-1600"):
        prompts("genai_bench")


def test_damaged_files_of_a_set_are_one_sentence(hub: Callable[..., Path]) -> None:
    bench = hub("BaiqiL/GenAI-Bench-1600")
    for file in ("genai_image.json", "genai_skills.json"):
        (bench / file).write_text("{}")
    with pytest.raises(UserError, match="not as expected"):
        prompts("genai_bench")


def test_a_named_set_knows_its_column(hub: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="leave prompts_column"):
        prompts("drawbench", prompts_column="x")


def test_a_file_of_a_sets_name_is_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("parti").write_text("a cat\n")
    assert pairs("parti") == [("a cat", None)]


# ---- datasets


def test_a_folder_is_read_as_a_dataset(tmp_path: Path) -> None:
    table(tmp_path / "train.jsonl", [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2}])
    assert pairs(tmp_path) == [("a", None), ("b", None)]
    assert [prompt.text for prompt in prompts(tmp_path, 1)] == ["a"]
    with pytest.raises(UserError, match="no column 'prmpt': did you mean 'prompt'"):
        prompts(tmp_path, prompts_column="prmpt")


def test_splits_are_named_where_there_are_several(tmp_path: Path) -> None:
    for name in ("test", "validation"):
        table(tmp_path / f"{name}.csv", [{"prompt": f"of {name}", "category": "c"}])
    with pytest.raises(
        UserError, match=r"has (test, validation|validation, test): set prompts_split"
    ):
        prompts(tmp_path)
    with pytest.raises(UserError, match="no split 'dev' but"):
        prompts(tmp_path, prompts_split="dev")
    assert pairs(tmp_path, prompts_split="test") == [("of test", "c")]


def test_a_hub_dataset_in_the_cache_is_read_offline_without_its_pictures(
    hub: Callable[..., Path],
) -> None:
    repository = "data-is-better-together/open-image-preferences-v1-binarized"
    data = hub(repository) / "data"
    data.mkdir()
    broken = {"bytes": b"no picture", "path": None}  # would fail where it is decoded
    rows = [{"prompt": p, "category": "Cinematic", "chosen": broken} for p in ("a", "b")]
    features = datasets.Features(
        prompt=datasets.Value("string"), category=datasets.Value("string"), chosen=datasets.Image()
    )
    datasets.Dataset.from_list(rows, features=features).to_parquet(
        str(data / "train-00000-of-00001.parquet")
    )
    expected = [("a", "Cinematic"), ("b", "Cinematic")]
    assert pairs(repository) == pairs("open_image_preferences") == expected


def test_a_hub_dataset_that_is_not_here_names_the_command(hub: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"run hf download nobody/nothing --repo-type dataset$"):
        prompts("nobody/nothing")


def test_categories_reach_the_records(tmp_path: Path) -> None:
    from experiment.runner import run

    path = table(tmp_path / "p.csv", [{"prompt": "a red circle", "category": "one"}])
    keys = {
        "prompts": str(path),
        "search_args.search_rounds": 1,
        "pipeline_call_args.num_inference_steps": 2,
        "pipeline_call_args.height": 64,
        "pipeline_call_args.width": 64,
        "verifier_args": {"name": "contrast"},
    }
    folder = run(load_config(FLUX, keys), str(tmp_path / "out")).folder
    (record,) = folder.glob("prompt@*.json")
    assert json.loads(record.read_text())["category"] == "one"
    (best,) = json.loads((folder / "summary.json").read_text())["prompts"]
    assert best["category"] == "one"
