"""The flags of `process_results.py`, and which of them do not go together."""

from __future__ import annotations

import argparse
from pathlib import Path

from utils import UserError

EXPORTS = (
    "imagefolder",
    "parquet",
    "preferences",
    "preferences_trl",
    "geneval",
    "t2i_compbench",
)
OF_PAIRS = ("preferences", "preferences_trl")
ALONE = ("export", "simulate")  # each makes something else than views of runs
VIEWS = ("report", "curves", "table", "paper_table", "top_k", "per_round", "judge")
TO_OUTPUT = ("report", "curves", "table", "paper_table", "export")


def parser(description: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=description)
    add = made.add_argument
    add(
        "--path",
        nargs="+",
        action="extend",
        required=True,
        metavar="RUN",
        help="run folders, comparisons, or patterns like 'output/*/*/*/*'; the pictures are written"
        " into the runs' own",
    )
    add(
        "--per_round",
        action="store_true",
        help="also write a grid of all candidates of each round, with seeds and scores",
    )
    add(
        "--output",
        metavar="DIR",
        help="where report, curves and tables go (RUN if unset), or an export (RUN/export_KIND)",
    )
    add(
        "--report",
        action="store_true",
        help="write report.html: rounds, curves, candidates, lineages, and runs side by side",
    )
    add(
        "--curves",
        action="store_true",
        help="write curves.png: best score so far against compute, expected best of n draws",
    )
    add(
        "--table",
        action="store_true",
        help="write table.csv and table.md: means with intervals, win rates, ranks by the judges",
    )
    add(
        "--top_k", type=int, default=0, metavar="K", help="write each prompt's best K images as one"
    )
    add(
        "--features",
        metavar="CHECKPOINT",
        help="with --table: a vision model, to tell how varied the winners are",
    )
    add(
        "--statistics",
        metavar="FILE",
        help="with --features: mu and sigma of real images under it, for the Fréchet distance",
    )
    add(
        "--paper_table",
        action="store_true",
        help="of comparisons: paper_table.md, .csv and .tex, verifier and method by metric",
    )
    add(
        "--budget",
        type=int,
        metavar="NFE",
        help="with --paper_table or --judge, of comparisons: at which budget (default: the largest"
        " that all methods have)",
    )
    add(
        "--simulate",
        metavar="POLICY",
        help="what pruning would have brought, from recorded previews: halving@0.5, or best",
    )
    _add_judging(made)
    _add_exports(made)
    return made


def _add_judging(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("judging", "scores of winners by more verifiers, afterwards")
    group.add_argument(
        "--judge",
        nargs="+",
        action="extend",
        metavar="JUDGE",
        help="have these verifiers judge the winners: names, or JSON as in a config's 'judges'; see"
        " docs/exports.md",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="with --judge: an option of the judge, such as model_name=...",
    )


def _add_exports(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("exports", "data sets of the runs' images; no pictures")
    group.add_argument(
        "--export",
        choices=EXPORTS,
        metavar="KIND",
        help=f"write all runs' scored images as one of {', '.join(EXPORTS)}; see docs/exports.md",
    )
    group.add_argument(
        "--margin",
        type=float,
        help="preferences: how far apart the scores of a pair must be (default 0)",
    )
    group.add_argument(
        "--push_to_hub", metavar="REPO", help="upload the export to this dataset repository"
    )


def refuse_clashes(given: argparse.Namespace) -> None:
    """Refuse flags that would have no effect: nobody should wait for what does not come."""
    wanted = [name for name in (*ALONE, *VIEWS) if getattr(given, name)]
    for name in ALONE:
        if name in wanted and len(wanted) > 1:
            other = next(each for each in wanted if each != name)
            raise UserError(f"--{name} goes alone: give --{other} in a command of its own.")
    if given.budget is not None and not (given.paper_table or given.judge):
        raise UserError("--budget goes with --paper_table or --judge.")
    if given.push_to_hub is not None and given.export is None:
        raise UserError("--push_to_hub goes with --export: say what to push.")
    if given.margin is not None and given.export not in OF_PAIRS:
        raise UserError(f"--margin goes with --export {' or '.join(OF_PAIRS)}: leave it out.")
    if given.set and not given.judge:
        raise UserError("--set goes with --judge: it is the judge's option.")
    _refuse_output(given)


def _refuse_output(given: argparse.Namespace) -> None:
    if given.output is None:
        return
    if not any(getattr(given, name) for name in TO_OUTPUT):
        raise UserError(
            "--output is for report, curves, tables and exports; all else goes into the runs' own"
            " folders or to the terminal: leave it out."
        )
    if Path(given.output).exists() and not Path(given.output).is_dir():
        raise UserError(f"--output {given.output} is a file: give a folder.")
