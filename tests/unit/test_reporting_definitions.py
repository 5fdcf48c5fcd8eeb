"""Loading a chapter's definitions runs none of its cells."""

from __future__ import annotations

import inspect
import multiprocessing
import pickle
from pathlib import Path

import pytest

from avssl_core.reporting import load_definitions

SCRIPT = '''# %% [markdown]
# # A chapter
# %%
from __future__ import annotations

from dataclasses import dataclass
import math

# %% tags=["parameters"]
budget: str = "small"  # which size
# %%
PI_TWICE = 2 * math.pi
LOW, HIGH = 0, 1
TYPED: int = 3
MIXED, lower = 1, 2
raise_me = 1 / 1
print("a cell ran")

@dataclass
class Box:
    """A box."""
    size: int = TYPED

def area(box: Box) -> int:
    return box.size ** 2

if True:
    HIDDEN = 1
1 / 0
'''


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "chapter.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return path


def test_only_definitions_are_executed(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = load_definitions(script)
    assert capsys.readouterr().out == ""
    assert (module.LOW, module.HIGH, module.TYPED) == (0, 1, 3)
    assert module.area(module.Box()) == 9
    for absent in ("budget", "raise_me", "MIXED", "lower", "HIDDEN"):
        assert not hasattr(module, absent), absent


def test_classes_can_be_pickled_and_sources_found(script: Path) -> None:
    module = load_definitions(script)
    assert pickle.loads(pickle.dumps(module.Box(5))) == module.Box(5)
    assert "box.size ** 2" in inspect.getsource(module.area)


def test_definitions_reach_forked_workers(script: Path) -> None:
    module = load_definitions(script)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.map(module.area, [module.Box(2), module.Box(3)]) == [4, 9]


def test_unchanged_script_gives_the_same_module_and_an_edit_a_new_one(script: Path) -> None:
    first = load_definitions(script)
    assert load_definitions(script) is first
    script.write_text(SCRIPT.replace("TYPED: int = 3", "TYPED: int = 4"), encoding="utf-8")
    assert load_definitions(script).TYPED == 4


def test_scripts_of_one_name_do_not_collide(script: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "chapter.py"
    other.parent.mkdir()
    other.write_text("TYPED = 9\n", encoding="utf-8")
    assert load_definitions(script).TYPED == 3
    assert load_definitions(other).TYPED == 9


def test_traceback_has_the_line_of_the_script(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("print('no')\n\n\nBAD = 1 / 0\n", encoding="utf-8")
    with pytest.raises(ZeroDivisionError) as caught:
        load_definitions(path)
    assert caught.traceback[-1].lineno == 3  # counted from 0
    with pytest.raises(ZeroDivisionError):  # a failed load is not remembered as loaded
        load_definitions(path)
