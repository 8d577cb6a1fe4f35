"""Docs in step with code: every public name has a docstring, every documented command is real."""

import ast
import dataclasses
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from rayssl.jobs import find_job

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


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


def documents() -> list[Path]:
    """Returns the pages that users read."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[tuple[str, list[str]]]:
    """Returns (script, words) for each call of experiments/*.py in the documents' fences."""
    found = []
    for block in (b for page in documents() for b in FENCE.findall(page.read_text("utf-8"))):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"&&|\|\||[|;]", line.split(" #")[0]):
                match = re.search(r"\bpython3?\s+(experiments/\w+\.py)(.*)", part)
                if match:
                    found.append((match[1], shlex.split(match[2])))
    return found


def scripts_named() -> list[str]:
    """Returns every experiments/*.py that a document names, in a command or in prose."""
    text = "".join(page.read_text("utf-8") for page in documents())
    return sorted(set(re.findall(r"\bexperiments/\w+\.py\b", text)))


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


@pytest.mark.parametrize("script", scripts_named())
def test_script_named_in_a_document_exists(script: str) -> None:
    assert (ROOT / script).is_file(), f"A document names {script}, which does not exist."


@pytest.mark.parametrize("script", sorted({script for script, _ in commands()}))
def test_flags_in_documented_commands_are_accepted(
    script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    main = import_module(f"experiments.{Path(script).stem}").main
    helps: dict[tuple[str, ...], set[str]] = {}
    for words in (words for name, words in commands() if name == script):
        flags = {word.split("=")[0] for word in words if FLAG.fullmatch(word.split("=")[0])}
        # What stands before the first flag may be a sub-command, which has a help text of its own.
        first_flag = next((i for i, w in enumerate(words) if w.startswith("-")), len(words))
        before = tuple(words[:first_flag])
        if before not in helps:
            with pytest.raises(SystemExit) as end:
                main([*before, "--help"])
            assert end.value.code in (0, None)
            helps[before] = set(FLAG.findall(capsys.readouterr().out))
            if script == "experiments/sweep.py" and before:  # every setting of the job is an option
                helps[before] |= {
                    "--" + field.name.replace("_", "-")
                    for field in dataclasses.fields(find_job(before[0]).settings)
                }
        unknown = flags - helps[before]
        assert not unknown, (
            f"A document calls {script} with {sorted(unknown)}, which its --help does not list:"
            f" {sorted(helps[before])}."
        )
