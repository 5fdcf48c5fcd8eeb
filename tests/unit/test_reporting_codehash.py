"""The code hash changes with what a cell can reach, and with nothing else."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from avssl_core.reporting import CodeHash, code_hash
from avssl_core.reporting.codetext import global_names

CHAPTER = '''
# %% [markdown]
# Prose about the method.
# %%
from __future__ import annotations
from dataclasses import dataclass
import corelib.transforms as tf
from corelib import losses
from corelib.nets import Net, build

LR = 0.1
UNUSED = 3

@dataclass(frozen=True)
class Config:
    """Settings."""
    steps: int = 10  # optimiser steps
    width: int = 4

def make_config(**values) -> Config:
    return Config(**values)

def score(x: float) -> float:
    """Docstring."""
    return losses.nce.info_nce(x) * LR

def run_cell(arm, seed, config):
    from corelib.lazy import late
    net = build(Net, config.width)
    return {"m": score(tf.flip(net(seed))) + late()}

def draw():
    return "picture"

# %%
trained = run_cell("a", 0, make_config())
'''

LIBRARY = {
    "__init__.py": '"""The library."""\n',
    "losses/__init__.py": "from corelib.losses.nce import info_nce\n",
    "losses/nce.py": (
        "import math\nTEMPERATURE = 0.07\n\n"
        "def info_nce(x):\n    return math.exp(x / TEMPERATURE)\n\n"
        "def other(x):\n    return x\n"
    ),
    "nets.py": (
        "from __future__ import annotations\nfrom .base import Base as Parent\n\n"
        "class Net(Parent):\n    depth: int = 2\n\n"
        "    def __call__(self, x):\n        return self.helper(x) + SHIFT\n\n"
        "    def helper(self, x):\n        return x\n\nSHIFT = 1\n\n"
        "def build(kind, width):\n    return BUILDERS['plain'](kind)\n\n"
        "def _plain(kind):\n    return kind()\n\nBUILDERS = {}\nBUILDERS['plain'] = _plain\n"
    ),
    "base.py": "class Base:\n    def size(self):\n        return 1\n",
    "transforms.py": "def flip(x):\n    return -x\n\ndef crop(x):\n    return x\n",
    "lazy.py": "def late():\n    return 1.0\n",
    "unrelated.py": "def nothing():\n    return 0\n",
}


class Project:
    """A chapter and a library on disk, to be edited by string replacement."""

    def __init__(self, root: Path) -> None:
        self.script = root / "toy.py"
        self.library = root / "corelib"
        self.script.write_text(CHAPTER, encoding="utf-8")
        for name, text in LIBRARY.items():
            path = self.library / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def hash(self) -> CodeHash:
        return code_hash(self.script, packages={"corelib": self.library})

    def edit(self, file: str, old: str, new: str) -> None:
        path = self.script if file == "toy.py" else self.library / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) >= 1, f"{old!r} is not in {file}"
        path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_walk_reaches_what_the_cell_uses_and_nothing_else(project: Project) -> None:
    assert set(project.hash().definitions) == {
        "chapter:Config",
        "chapter:LR",
        "chapter:make_config",
        "chapter:run_cell",
        "chapter:score",
        "corelib.base:Base",
        "corelib.lazy:late",
        "corelib.losses.nce:TEMPERATURE",
        "corelib.losses.nce:info_nce",
        "corelib.nets:BUILDERS",
        "corelib.nets:Net",
        "corelib.nets:SHIFT",
        "corelib.nets:_plain",
        "corelib.nets:build",
        "corelib.transforms:flip",
    }


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("toy.py", "# Prose about the method.", "# Much better prose."),
        ("toy.py", "# optimiser steps", "# gradient steps"),
        ("toy.py", '"""Docstring."""', '"""Another docstring,\n    longer."""'),
        ("toy.py", '    """Docstring."""\n', ""),
        ("toy.py", "def score(x: float) -> float:", "def score(x) -> 'torch.Tensor':"),
        ("toy.py", "steps: int = 10", "steps: float = 10"),
        ("toy.py", "UNUSED = 3", "UNUSED = 4"),
        ("toy.py", 'return "picture"', 'return "a better picture"'),
        ("toy.py", 'trained = run_cell("a", 0, make_config())', 'trained = run_cell("b", 9, make_config())'),
        ("toy.py", "LR = 0.1", "LR = 1e-1"),
        ("toy.py", "import corelib.transforms as tf\n", "import corelib.transforms as tf\nimport corelib.unrelated\n"),
        ("losses/nce.py", "def other(x):\n    return x", "def other(x):\n    return x + 1"),
        ("transforms.py", "def crop(x):\n    return x", "def crop(x):\n    return 2 * x"),
        ("unrelated.py", "return 0", "return 1"),
        ("nets.py", "def helper(self, x):\n", "# why\n    def helper(self, x):\n        # because\n"),
        ("nets.py", "depth: int = 2", "depth: 'int' = 2"),
        ("__init__.py", '"""The library."""', '"""The whole library."""'),
    ],
)
def test_unrelated_edits_keep_the_hash(project: Project, file: str, old: str, new: str) -> None:
    before = project.hash()
    project.edit(file, old, new)
    after = project.hash()
    assert after.changed_from(before) == []
    assert after.sha256 == before.sha256


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("toy.py", "LR = 0.1", "LR = 0.2", "chapter:LR"),
        ("toy.py", "steps: int = 10", "steps: int = 20", "chapter:Config"),
        ("toy.py", 'return {"m": score', 'return {"m": 2 * score', "chapter:run_cell"),
        ("toy.py", "@dataclass(frozen=True)", "@dataclass", "chapter:Config"),
        ("losses/nce.py", "TEMPERATURE = 0.07", "TEMPERATURE = 0.1", "corelib.losses.nce:TEMPERATURE"),
        ("losses/nce.py", "math.exp(x", "math.expm1(x", "corelib.losses.nce:info_nce"),
        ("nets.py", "SHIFT = 1", "SHIFT = 2", "corelib.nets:SHIFT"),
        (
            "nets.py",
            "def helper(self, x):\n        return x",
            "def helper(self, x):\n        return 2 * x",
            "corelib.nets:Net",
        ),
        ("nets.py", "return kind()", "return kind(3)", "corelib.nets:_plain"),
        ("base.py", "return 1", "return 2", "corelib.base:Base"),
        ("transforms.py", "return -x", "return x", "corelib.transforms:flip"),
        ("lazy.py", "return 1.0", "return 2.0", "corelib.lazy:late"),
        ("toy.py", "import corelib.transforms as tf", "import corelib.lazy as tf", "chapter:run_cell"),
        # a side effect at the top level of a module that is reached
        ("losses/nce.py", "import math\n", "import math\nmath.setup()\n", "corelib.losses.nce:<effects>"),
        # a value changed under another name, inside a condition
        ("nets.py", "SHIFT = 1", "if True:\n    SHIFT = 1\nelse:\n    SHIFT = 5", "corelib.nets:SHIFT"),
    ],
)
def test_edits_that_the_cell_can_reach_change_the_hash(
    project: Project, file: str, old: str, new: str, changed: str
) -> None:
    before = project.hash()
    project.edit(file, old, new)
    after = project.hash()
    assert changed in after.changed_from(before)
    assert after.sha256 != before.sha256


def test_swapping_where_a_name_comes_from_changes_the_hash(project: Project) -> None:
    """The texts of all definitions stay the same; only what the name leads to differs."""
    (project.library / "a.py").write_text("def f():\n    return 1\n", encoding="utf-8")
    (project.library / "b.py").write_text("def f():\n    return 2\n", encoding="utf-8")
    project.edit("lazy.py", "def late", "from corelib.a import f\nfrom corelib.b import f as g\n\ndef late")
    project.edit("lazy.py", "return 1.0", "return f() - g()")
    before = project.hash()
    project.edit(
        "lazy.py",
        "from corelib.a import f\nfrom corelib.b import f as g",
        "from corelib.b import f\nfrom corelib.a import f as g",
    )
    assert project.hash().sha256 != before.sha256


def test_third_party_source_of_a_name_counts(project: Project) -> None:
    project.edit("losses/nce.py", "import math", "from math import exp as e")
    project.edit("losses/nce.py", "math.exp(x", "e(x")
    before = project.hash()
    project.edit("losses/nce.py", "from math import exp as e", "from math import expm1 as e")
    assert project.hash().sha256 != before.sha256


def test_module_as_a_value_counts_as_a_whole(project: Project) -> None:
    project.edit("toy.py", "tf.flip(net(seed))", 'getattr(tf, "flip")(net(seed))')
    before = project.hash()
    project.edit("transforms.py", "def crop(x):\n    return x", "def crop(x):\n    return 2 * x")
    assert project.hash().changed_from(before) == ["corelib.transforms:crop"]


def test_modules_named_in_strings_count(project: Project) -> None:
    recipes = project.library / "recipes"
    recipes.mkdir()
    (recipes / "__init__.py").write_text("", encoding="utf-8")
    (recipes / "one.py").write_text("SIZE = 1\n", encoding="utf-8")
    project.edit(
        "lazy.py", "return 1.0", "import importlib\n    return importlib.import_module(f'corelib.recipes.{0}').SIZE"
    )
    before = project.hash()
    (recipes / "one.py").write_text("SIZE = 2\n", encoding="utf-8")
    assert project.hash().changed_from(before) == ["corelib.recipes.one:SIZE"]


def test_star_imports_and_re_exports_are_followed(project: Project) -> None:
    project.edit("lazy.py", "def late", "from corelib.unrelated import *\n\ndef late")
    project.edit("lazy.py", "return 1.0", "return nothing()")
    before = project.hash()
    assert "corelib.unrelated:nothing" in before.definitions
    project.edit("unrelated.py", "return 0", "return 7")
    assert project.hash().sha256 != before.sha256


def test_a_local_variable_is_not_the_module_it_shadows(project: Project) -> None:
    project.edit(
        "lazy.py",
        "def late():\n    return 1.0",
        "def unused():\n    return 3\n\ndef late():\n    unused = 1.0\n    return unused",
    )
    before = project.hash()
    project.edit("lazy.py", "return 3", "return 4")
    assert project.hash().sha256 == before.sha256


def test_moving_the_chapter_changes_nothing(project: Project, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "other.py"
    moved.parent.mkdir()
    moved.write_text(CHAPTER, encoding="utf-8")
    assert code_hash(moved, packages={"corelib": project.library}).sha256 == project.hash().sha256


def test_a_chapter_without_a_cell_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "empty.py"
    script.write_text("X = 1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="run_cell"):
        code_hash(script, packages={})


def test_the_installed_core_can_be_walked(tmp_path: Path) -> None:
    """On real code: the verdict's helper is reached, the tables beside it are not."""
    script = tmp_path / "real.py"
    script.write_text(
        "from avssl_core.reporting import verdict\n\ndef run_cell(arm, seed, config):\n    return verdict([1.0])\n",
        encoding="utf-8",
    )
    reached = code_hash(script).definitions
    assert "avssl_core.reporting.verdicts:t_interval" in reached
    assert not any(name.startswith("avssl_core.reporting.tables:") for name in reached)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("A = {n: F(n) for n in X}", {"F", "X"}),
        ("A = [k for k in A if k]", {"A"}),
        ("class C(Base):\n    made = [Q(i) for i in range(3)]", {"Base", "Q", "range"}),
        ("def f(x):\n    return [g(y) for y in x] + f(x)", {"g", "f"}),
        ("try:\n    import fast\nexcept ImportError as error:\n    fast = slow", {"ImportError", "slow"}),
    ],
)
def test_variables_of_comprehensions_are_no_names_of_the_module(source: str, expected: set[str]) -> None:
    """Python 3.12 counts them among the module's names; the hash must not depend on the version."""
    assert global_names(ast.parse(source).body[0]) == expected
