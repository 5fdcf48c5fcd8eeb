"""Every command and path in the README and CONTRIBUTING: cheap ones are run, the others checked against what exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from avssl.cli import app
from avssl.manifest import load_manifest
from avssl.readme import with_chapters

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md")
CHEAP = ("avssl list", "avssl doctor")
PLACES = ("~/", "host0:")  # the reader's own


def commands() -> list[str]:
    """Lines of the ``bash`` blocks of all pages."""
    texts = ((ROOT / page).read_text() for page in PAGES)
    blocks = (block for text in texts for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    return list(dict.fromkeys(line for block in blocks for line in block.splitlines() if line.strip()))


def avssl(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    command = [sys.executable, "-m", "avssl", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def check_avssl(words: list[str]) -> None:
    """The subcommand exists and knows every option; chapter and budget are in the manifest."""
    command: Any = typer.main.get_command(app)
    for depth, word in enumerate(words):
        if not hasattr(command, "commands"):
            break
        assert word in command.commands, f"avssl has no command {' '.join(words[: depth + 1])!r}"
        command = command.commands[word]
    known = {name for parameter in command.params for name in parameter.opts}
    unknown = [word for word in words if word.startswith("-") and word not in known]
    assert unknown == [], f"{command.name} has no {unknown}"
    if words[0] in ("run", "record", "keep", "submit", "notebook"):
        chapter = load_manifest(ROOT / "book.yml").chapter(words[1])
        if "--budget" in words:
            assert words[words.index("--budget") + 1] in {budget.name for budget in chapter.budgets}


def check_torchrun(words: list[str]) -> None:
    """torchrun's own parser takes it, and what it starts is a command of ours."""
    from torch.distributed.run import get_args_parser

    arguments = get_args_parser().parse_args(words)
    assert arguments.module
    assert arguments.training_script == "avssl"
    check_avssl(arguments.training_script_args)


def check_make(words: list[str]) -> None:
    shown = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert shown.returncode == 0, shown.stderr
    for name in (word.removeprefix("NAME=") for word in words if word.startswith("NAME=")):
        load_manifest(ROOT / "book.yml").chapter(name)


def test_the_readme_has_its_two_commands_first() -> None:
    first = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)[1]
    assert first.splitlines() == ["make chapter NAME=gdt", "make test"]


@pytest.mark.parametrize("command", commands())
def test_every_command_exists_as_written(command: str) -> None:
    program, *words = shlex.split(command)
    checks = {"avssl": check_avssl, "torchrun": check_torchrun, "make": check_make}
    if command == "source .venv/bin/activate":
        return  # what `make` has made
    assert program in checks, f"nobody checks {program!r}"
    checks[program](words)


@pytest.mark.parametrize("command", CHEAP)
def test_cheap_commands_run(command: str) -> None:
    assert command in commands()
    ran = avssl(*command.split()[1:])
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    inline = re.findall(r"`([^`\n]+)`", text) + re.findall(r"\]\(([^)]+)\)", text)
    inline = [name for name in inline if not name.startswith(("http", *PLACES))]
    paths = [
        name
        for name in inline
        if re.fullmatch(r"[\w.][\w./-]*", name) and ("/" in name or name.endswith((".md", ".yml")))
    ]
    made = ("chapters/NN_name", ".venv")  # patterns, and what `make` makes
    missing = [name for name in paths if not name.startswith(made) and not (ROOT / name).exists()]
    assert paths, "no path found: has the pattern gone wrong?"
    assert missing == []


def test_the_table_of_chapters_is_the_manifests() -> None:
    text = (ROOT / "README.md").read_text()
    assert with_chapters(text, load_manifest(ROOT / "book.yml")) == text, "run: make readme"


def test_a_readme_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks"):
        with_chapters("# nothing here", load_manifest(ROOT / "book.yml"))
