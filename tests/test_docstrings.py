"""Docs in step with code: every public name has a docstring, every README command is real."""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
QUICK = {"experiments/atari.py", "experiments/evaluate.py"}  # the others are checked as slow tests


def undocumented(source: str, place: str) -> Iterator[str]:
    """Yields the module, and its public classes and functions, that have no docstring."""
    tree = ast.parse(source)
    if not ast.get_docstring(tree):
        yield f"{place}:1 module"
    for node in tree.body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        overloaded = any(ast.unparse(d).endswith("overload") for d in node.decorator_list)
        if not node.name.startswith("_") and not overloaded and not ast.get_docstring(node):
            yield f"{place}:{node.lineno} {node.name}"


def readme_commands() -> list[tuple[str, list[str]]]:
    """Returns (script, words after it) for each call of experiments/*.py in the README's fences."""
    commands = []
    for block in FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||[|;]", line.split(" #")[0]):
                match = re.search(r"\bpython3?\s+(experiments/\w+\.py)(.*)", part)
                if match:
                    commands.append((match[1], shlex.split(match[2])))
    return commands


def scripts_named_in_readme() -> list[str]:
    """Returns every experiments/*.py that the README names, in a command or in prose."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return sorted(set(re.findall(r"\bexperiments/\w+\.py\b", text)))


def skip_while_missing(script: str) -> None:
    """Skips, with the reason, until the first script is there; fails if only this one is not."""
    if not list(ROOT.glob("experiments/*.py")):
        pytest.skip(f"README names {script}, and experiments/ holds no script yet")
    assert (ROOT / script).is_file(), f"README names {script}, which does not exist."


def test_every_public_name_has_a_docstring() -> None:
    missing = [
        line
        for path in sorted((ROOT / "rayssl").rglob("*.py"))
        for line in undocumented(path.read_text(encoding="utf-8"), str(path.relative_to(ROOT)))
    ]
    assert not missing, "Expected a docstring for each of:\n  " + "\n  ".join(missing)


def test_docstring_rule_finds_what_is_missing_and_leaves_private_names_alone() -> None:
    source = "def f(): ...\ndef _g(): ...\nclass C:\n  '''Doc.'''\nclass D: ...\n"
    assert list(undocumented(source, "a.py")) == ["a.py:1 module", "a.py:1 f", "a.py:5 D"]
    assert list(undocumented("'''Doc.'''", "a.py")) == []


@pytest.mark.parametrize("script", scripts_named_in_readme())
def test_script_named_in_readme_exists(script: str) -> None:
    skip_while_missing(script)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(script, marks=[] if script in QUICK else [pytest.mark.slow])
        for script in sorted({script for script, _ in readme_commands()})
    ],
)
def test_flags_in_readme_commands_are_accepted(script: str) -> None:
    skip_while_missing(script)
    helps: dict[tuple[str, ...], set[str]] = {}
    for words in (words for name, words in readme_commands() if name == script):
        flags = {word.split("=")[0] for word in words if FLAG.fullmatch(word.split("=")[0])}
        # What stands before the first flag may be a sub-command, which has a help text of its own.
        first_flag = next((i for i, w in enumerate(words) if w.startswith("-")), len(words))
        before = tuple(words[:first_flag])
        if before not in helps:
            helps[before] = flags_in_help(script, before)
        unknown = flags - helps[before]
        assert not unknown, (
            f"README calls {script} with {sorted(unknown)}, which its --help does not list:"
            f" {sorted(helps[before])}."
        )


def flags_in_help(script: str, words: tuple[str, ...]) -> set[str]:
    """Returns the flags that `python SCRIPT WORDS --help` prints."""
    done = subprocess.run(
        [sys.executable, script, *words, "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return set(FLAG.findall(done.stdout))
