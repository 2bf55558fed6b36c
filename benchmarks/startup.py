"""How long a user waits for words: --help, a refused config, a plan. Each in a fresh process."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.figures import Figure, figure
from utils import ROOT

CONFIG = "--pipeline_config_path=configs/shapes_flux.json"
COMMANDS: dict[str, tuple[Sequence[str], int]] = {  # and the exit code that they end with
    "python alone": (("-c", "pass"), 0),
    "main.py --help": (("main.py", "--help"), 0),
    "main.py, a misspelt key": (("main.py", CONFIG, "--set", "serch_args.search_method=random"), 2),
    "main.py --dry_run": (("main.py", CONFIG, "--dry_run"), 0),
}
BARS = {"main.py --help": 0.3}  # seconds


def figures(repeats: int, quick: bool) -> list[Figure]:
    """Seconds of each command, taking turns; a first turn fills the disk's cache, uncounted."""
    repeats = 1 if quick else repeats
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(1 + repeats):
        for name, (words, code) in COMMANDS.items():
            started = time.perf_counter()
            done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True)
            taken[name].append(time.perf_counter() - started)
            assert done.returncode == code, done.stderr.decode()
    return [figure(name, "s", found[1:], bar=BARS.get(name)) for name, found in taken.items()]
