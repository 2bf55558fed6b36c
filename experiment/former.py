"""What earlier versions of tt-scale-flux called things, so that an error can say what to write.

Only its present flags and keys are taken; these are named where they are refused.
"""

from __future__ import annotations

from collections.abc import Sequence

# Its flags before they moved into the config.
FLAGS = {
    "--verifier_to_use": "verifier_args.name",
    "--choice_of_metric": "verifier_args.choice_of_metric",
    "--max_new_tokens": "verifier_args.max_new_tokens",
    "--search_rounds": "search_args.search_rounds",
    "--height": "pipeline_call_args.height",
    "--width": "pipeline_call_args.width",
}
METHODS = {"path-search": "paths"}
OPTIONS = {  # by today's method; None for what has no counterpart
    "paths": {"N": "num_paths", "M": "width", "sigma_start": "sigma", "L": None},
}


def unknown_flags(given: Sequence[str]) -> str:
    """The sentence for arguments that no flag takes."""
    settings = []
    for at, text in enumerate(given):
        flag, equals, value = text.partition("=")
        if flag not in FLAGS:
            continue
        after = given[at + 1 : at + 2]  # as in `--search_rounds 2`
        separate = after[0] if after and not after[0].startswith("-") else "..."
        settings.append((flag, f"--set {FLAGS[flag]}={value if equals else separate}"))
    if not settings:
        return f"unrecognized arguments: {' '.join(given)}; see --help."
    flags, sets = (list(column) for column in zip(*settings, strict=True))
    return f"In place of {', '.join(flags)}, now in the config, give {' '.join(sets)}."


def method_renamed(name: str) -> str | None:
    """The sentence for a search method that is called otherwise here."""
    now = METHODS.get(name)
    if now is None:
        return None
    pairs = OPTIONS[now].items()
    renamed = ", ".join(f"'{option}' for '{old}'" for old, option in pairs if option)
    dropped = ", ".join(f"'{old}'" for old, option in pairs if not option)
    return f"The search method '{name}' is '{now}' here: write {renamed}, and leave out {dropped}."


def option_renamed(method: str, option: str) -> str | None:
    """The end of a sentence for an option that is called otherwise here."""
    options = OPTIONS.get(method, {})
    if option not in options:
        return None
    now = options[option]
    return f"it is '{now}' here." if now else "leave it out, the scheduler's own steps are taken."
