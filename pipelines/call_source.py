"""A pipeline's call as its source has it: what it takes, and what it hands to the scheduler.

Importing a pipeline's class takes seconds, since text encoders come along; a plan asks for names
alone, and these stand in the source.
"""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

OPTIONAL = {"num_inference_steps", "device", "timesteps", "sigmas"}  # handed on only where set


@dataclass(frozen=True)
class CallSource:
    """takes: the names of its parameters. hands: those of `set_timesteps` that it always gives."""

    takes: frozenset[str]
    hands: frozenset[str]


def call_source(pipeline: object) -> CallSource | None:
    """The call of diffusers' class of this name; None where the class itself must be asked."""
    path = _file(pipeline) if isinstance(pipeline, str) else None
    if path is None:
        return None
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == pipeline:
            for member in node.body:
                if isinstance(member, ast.FunctionDef) and member.name == "__call__":
                    return CallSource(_parameters(member), _handed(member))
    return None


def _file(name: str) -> Path | None:
    """Where diffusers' lazy packages say that a class stands; imports no more than them."""
    path = "diffusers"
    while True:
        table = getattr(importlib.import_module(path), "_class_to_module", {})
        if name not in table:
            return None
        path = f"{path}.{table[name]}"
        found = find_spec(path)
        if found is None or found.origin is None:
            return None
        if found.submodule_search_locations is None:
            return Path(found.origin)


def _parameters(call: ast.FunctionDef) -> frozenset[str]:
    named = (*call.args.posonlyargs, *call.args.args, *call.args.kwonlyargs)
    return frozenset(each.arg for each in named) - {"self"}


def _handed(call: ast.FunctionDef) -> frozenset[str]:
    """Keywords with which steps are set on the pipeline's own scheduler, whichever way it is: some
    hand over more to some schedulers."""
    ways = [
        {key.arg for key in node.keywords if key.arg} - OPTIONAL
        for node in ast.walk(call)
        if isinstance(node, ast.Call) and _sets_steps(node)
    ]
    return frozenset(set.intersection(*ways)) if ways else frozenset()


def _sets_steps(node: ast.Call) -> bool:
    """`retrieve_timesteps(self.scheduler, ...)` or `self.scheduler.set_timesteps(...)`."""
    function = node.func
    if isinstance(function, ast.Name):
        return function.id == "retrieve_timesteps" and any(map(_is_scheduler, node.args[:1]))
    named = isinstance(function, ast.Attribute) and function.attr == "set_timesteps"
    return named and _is_scheduler(getattr(function, "value", None))


def _is_scheduler(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "scheduler"
