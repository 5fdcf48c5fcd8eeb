"""The project's own files agree with each other: dependencies, manifest, chapters, licences, make targets."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from avssl.lock import EXTRAS, closure
from avssl.manifest import Manifest, load_manifest
from avssl.notebooks import read_script
from avssl.parameters import declared, read_budget
from avssl.places import corpus_names

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["I", "II", "III", "IV", "V", "VI"]


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return load_manifest(ROOT / "book.yml")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def split(requirement: str) -> tuple[str, str]:
    """``"dask[distributed]>=2024.5"`` as ``("dask", ">=2024.5")``."""
    name, _, version = re.match(r"([A-Za-z0-9._-]+)(\[[^]]*\])?(.*)", requirement).groups()
    return name.lower().replace("_", "-"), version.replace(" ", "")  # conda-forge spells some names with _


def test_conda_and_pip_ask_for_the_same_names_and_ranges(project: dict[str, Any]) -> None:
    """All that chapters, `make test` and `make book` need. The extra ``bench`` is left to pip (`make bench`): libraries
    of others to compare with, which no chapter and no test imports and whose own needs would narrow everyone's."""
    wanted = list(project["dependencies"])
    assert set(project["optional-dependencies"]) - set(EXTRAS) == {"bench"}
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    given = [entry for entry in conda if isinstance(entry, str)] + [entry for entry in pip if not entry.startswith("-")]
    found = dict(map(split, given))
    assert found.pop("python") == project["requires-python"]
    assert found.pop("pip") == ""
    assert found == dict(map(split, wanted))
    assert "--editable ." in pip


def test_every_dependency_says_who_needs_it() -> None:
    """A comment on its line, or on a line above it in the same list."""
    lists = re.findall(r"^[\w-]+ = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), flags=re.DOTALL | re.MULTILINE)
    asked = [
        block.splitlines() for block in lists if re.search(r'^  "[A-Za-z-]+(\[\w+\])?>=', block, flags=re.MULTILINE)
    ]
    assert len(asked) == 5  # chapters, and four extras
    assert [block[0] for block in asked if "#" not in block[0]] == []


def test_the_lock_names_what_is_installed_within_the_ranges(project: dict[str, Any]) -> None:
    lock = dict(line.split("==") for line in (ROOT / "lock.txt").read_text().splitlines() if not line.startswith("#"))
    direct = {split(text)[0] for text in project["dependencies"]}
    assert direct <= set(lock), direct - set(lock)
    assert {split(text)[0] for extra in EXTRAS for text in project["optional-dependencies"][extra]} <= set(lock)
    assert "avssl" not in lock


def test_the_closure_follows_dependencies_and_extras() -> None:
    plain = closure("avssl")
    assert {"torch", "numpy", "jinja2"} <= set(plain)  # jinja2: only through others
    assert "submitit" not in plain
    assert "submitit" in closure("avssl", ["scale"])


def test_thirteen_chapters_in_six_parts(manifest: Manifest) -> None:
    assert len(manifest.chapters) == 13
    assert list(manifest.parts) == PARTS
    in_order = [PARTS.index(chapter.part) for chapter in manifest.chapters]
    assert in_order == sorted(in_order)
    assert set(in_order) == set(range(6))
    assert len({chapter.name for chapter in manifest.chapters}) == 13
    for number, chapter in enumerate(manifest.chapters, start=1):
        assert chapter.folder.name == f"{number:02d}_{chapter.name}"


def test_the_toc_holds_exactly_the_chapters_that_run(manifest: Manifest) -> None:
    content = yaml.safe_load((ROOT / "book.yml").read_text())
    files = [entry["file"] for part in content["parts"] for entry in part["chapters"]]
    in_toc = [ROOT / file for file in files if file.startswith("chapters/")]
    assert in_toc == [chapter.notebook.with_suffix("") for chapter in manifest.chapters if chapter.state == "runs"]
    pages = [file for file in files if not file.startswith("chapters/")] + [content["root"]]
    missing = [page for page in pages if not (ROOT / "book" / f"{page}.md").is_file()]
    assert missing == ["chapters", "what-was-measured"]  # made from the manifest, and from the benchmarks' files


def test_budgets_of_the_manifest_and_files_of_the_chapter_agree(manifest: Manifest) -> None:
    for chapter in (chapter for chapter in manifest.chapters if chapter.state == "runs"):
        assert chapter.script.is_file(), chapter.script
        names = [budget.name for budget in chapter.budgets if budget.name != "record"]
        assert sorted(names) == sorted(name for name in chapter.budget_names() if name != "record")
        assert {"smoke", "small"} <= set(names)
        parameters = declared(read_script(chapter.script))
        for name in names:
            read_budget(chapter.budget_file(name), parameters)  # raises on an unknown name or a wrong type
        minutes = {budget.name: budget.minutes for budget in chapter.budgets}
        assert minutes["smoke"] <= 1.25
        assert minutes["small"] <= 40
        assert minutes["record"] <= 360
    for chapter in (chapter for chapter in manifest.chapters if chapter.state == "draft"):
        assert [budget.name for budget in chapter.budgets] == ["smoke"], f"{chapter.name}: only smoke has been measured"
        parameters = declared(read_script(chapter.script))
        for name in chapter.budget_names():
            read_budget(chapter.budget_file(name), parameters)
        assert not chapter.notebook.is_file()
    for chapter in (chapter for chapter in manifest.chapters if chapter.state == "planned"):
        assert chapter.budgets == (), f"{chapter.name} is planned: nobody has measured its budgets"
        assert not chapter.script.is_file()


def corpora_asked_for(script: Path) -> set[str]:
    """Names that a chapter compares its ``config.data`` with."""
    compared = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Compare)]
    about_data = [node for node in compared if ast.unparse(node.left) == "config.data"]
    parts = [part for node in about_data for part in ast.walk(node) if isinstance(part, ast.Constant)]
    return {part.value for part in parts}


def test_the_corpora_that_a_chapter_takes_by_name_are_told_before_it_starts(manifest: Manifest) -> None:
    """A name that is not among them is refused by ``avssl run --data``."""
    runnable = [chapter for chapter in manifest.chapters if chapter.runnable]
    assert runnable
    for chapter in runnable:
        parameters = declared(read_script(chapter.script))
        asked = corpora_asked_for(chapter.script)
        assert "playground" in asked and asked <= set(corpus_names(chapter, parameters)), chapter.name


def test_licences_are_what_the_readme_says() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "CC BY 4.0" in (ROOT / "LICENSE-TEXT").read_text()


# What `make test` hands on to the make that a test starts: its flags and its variables, VENV among them.
OF_OUTER_MAKE = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "VENV", "PINS", "TESTS", "WORKERS")


def absolute_paths(value: Any) -> list[str]:
    """Strings anywhere in ``value`` that name a place on the machine that wrote them."""
    if isinstance(value, dict):
        return [found for part in value.values() for found in absolute_paths(part)]
    if isinstance(value, list):
        return [found for part in value for found in absolute_paths(part)]
    return [value] if isinstance(value, str) and Path(value).is_absolute() else []


@pytest.mark.parametrize("folder", ["results", "benchmarks/results"])
def test_recorded_figures_name_no_place_of_the_machine_that_wrote_them(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.json"))
    found = {file.name: absolute_paths(json.loads(file.read_text(encoding="utf-8"))) for file in files}
    assert files and not {name: paths for name, paths in found.items() if paths}
    assert absolute_paths({"settings": [{"json": "/somewhere/x.json"}]}) == ["/somewhere/x.json"]


def make(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in OF_OUTER_MAKE}
    return subprocess.run(["make", *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def test_make_says_what_it_can_do() -> None:
    shown = make("help").stdout
    for target in ("chapter NAME=gdt", "make test", "make book", "make bench", "make record"):
        assert target in shown
    assert shown == make().stdout


@pytest.mark.parametrize("target", ["chapter", "notebook", "record"])
def test_make_needs_the_name_of_a_chapter(target: str) -> None:
    ran = make(target)
    assert ran.returncode != 0
    assert "NAME=gdt" in ran.stdout
    assert "pip install" not in ran.stdout


def test_make_refuses_an_old_python_before_it_makes_anything(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").write_text("")
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.1 && exit 0\nexit 1\n')
    old.chmod(0o755)
    ran = make("chapter", "NAME=gdt", f"PYTHON={old}", cwd=tmp_path)
    assert ran.returncode != 0
    assert "Python 3.11 or newer is needed" in ran.stdout
    assert "Python 3.9.1" in ran.stdout
    assert not (tmp_path / ".venv").exists()


def test_make_does_not_install_twice(tmp_path: Path) -> None:
    """With a stand-in for Python that logs its calls: one installation, until pyproject.toml changes."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").write_text("")
    log = tmp_path / "calls.log"
    stand_in = tmp_path / "python"
    # `python -m venv DIR` puts a copy of the stand-in, and an `avssl`, into DIR/bin
    stand_in.write_text(
        f'#!/bin/sh\necho "$*" >> {log}\n'
        'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; cp "$0" "$3/bin/avssl"; fi\n'
    )
    stand_in.chmod(0o755)
    for _ in range(2):
        assert make("chapter", "NAME=toy", f"PYTHON={stand_in}", cwd=tmp_path).returncode == 0
    calls = log.read_text().splitlines()
    assert sum("venv" in call for call in calls) == 1
    assert sum("pip install" in call for call in calls) == 1
    assert sum(call.startswith("run toy --budget small") for call in calls) == 2
    stamp = tmp_path / ".venv" / ".ready-run"
    newer = stamp.stat().st_mtime + 5

    os.utime(tmp_path / "pyproject.toml", (newer, newer))
    assert make("chapter", "NAME=toy", f"PYTHON={stand_in}", cwd=tmp_path).returncode == 0
    assert sum("pip install" in call for call in log.read_text().splitlines()) == 2


def test_ci_runs_the_readmes_test_command_and_requires_the_fixtures(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "run"
    script.write_text((ROOT / ".ci" / "run").read_text())
    (tmp_path / "Makefile").write_text('test:\n\t@echo "required=$$AVSSL_REQUIRE_FIXTURES"\n')

    of_outer_runs = ("CI", "AVSSL_REQUIRE_FIXTURES", *OF_OUTER_MAKE)
    bare = {key: value for key, value in os.environ.items() if key not in of_outer_runs}
    for extra, printed in (({"CI": "true"}, "required=1"), ({}, "required=")):
        ran = subprocess.run(
            ["bash", str(script)], env=bare | extra, cwd="/", capture_output=True, text=True, timeout=60
        )
        assert ran.stdout.strip().splitlines()[-1] == printed
