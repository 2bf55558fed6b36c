"""A run as it would be: everything that can be refused before weights load is refused here too."""

from __future__ import annotations

from pathlib import Path

from experiment.config import ExperimentConfig
from experiment.mirror import is_url
from experiment.probe import probe_plan, set_up
from experiment.resume import config_of_run, finished, run_named, run_to_resume
from experiment.runner import plan


def dry_run(
    config: ExperimentConfig,
    root: str,
    resume: str | None,
    run_name: str | None,
    noises: int | None = None,
) -> str:
    """The plan of a run, or of one to go on with; loads nothing, writes nothing.

    root: of the output tree; what there is at a URL is not looked at. noises: of a probe.
    """
    searched = config if noises is None else set_up(config, noises, offline=True).config
    folder = _run_there(searched, root, resume, run_name)
    if folder is not None:
        searched = config_of_run(folder, searched)
    lines = [str(plan(searched)) if noises is None else probe_plan(config, noises)]
    if folder is not None:
        state = "finished: nothing is left to do" if finished(folder) else "goes on"
        lines.append(f"{'run':<14}{folder}, {state}")
    return "\n".join(lines)


def _run_there(
    config: ExperimentConfig, root: str, resume: str | None, run_name: str | None
) -> Path | None:
    """The run to go on with, if it is one of this config; None for a new one."""
    if is_url(root):
        return None
    if run_name is not None:
        return run_named(config, root, run_name)
    return None if resume is None else run_to_resume(config, root, resume)
