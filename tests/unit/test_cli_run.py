"""``avssl run``: what it checks before starting, what it passes to the notebook, what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from toy_book import HEAD, write_book

from avssl.cli import main
from avssl.errors import UsageError
from avssl.manifest import find_book, load_manifest
from avssl.notebooks import read_script
from avssl.parameters import Parameter, declared, read_budget, read_overrides
from avssl.run import ChapterFailed, execute, measure, plan_run, read_claims

Here = Callable[..., tuple[object, str]]


def avssl(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line as a person runs it."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("AVSSL_")}
    return subprocess.run(
        [sys.executable, "-m", "avssl", *map(str, arguments)],
        cwd=cwd,
        env=inherited | {"COLUMNS": "160"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Here:
    """The command line in this process, in ``tmp_path``: exit code and what it wrote to standard error."""
    for name in [name for name in os.environ if name.startswith("AVSSL_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["avssl", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capfd.readouterr().err

    return call


def test_a_run_ends_with_its_claims_and_paths(tmp_path: Path) -> None:
    write_book(tmp_path)
    ran = avssl("run", "toy", "--budget", "smoke", "-p", "rate=0.25", "--out", "a {run}", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    out = tmp_path / "a {run}"
    assert "budget=smoke steps=4 total=1.5" in ran.stdout  # the budget's steps, the command line's rate
    assert "adds-up" in ran.stdout
    assert "numbers add up [really]" in ran.stdout  # file contents are text, not markup
    assert "reproduced" in ran.stdout
    assert str(out / "toy.ipynb") in ran.stdout
    assert str(out / "toy.html") in ran.stdout
    assert "total=1.5" in (out / "toy.html").read_text()
    assert "total=1.5" in (out / "toy.log").read_text()
    assert json.loads((out / "parameters.json").read_text())["parameters"] == {"steps": 4, "rate": 0.25}
    cells = nbformat.read(out / "toy.ipynb", as_version=4).cells
    assert any("injected-parameters" in cell.metadata.get("tags", []) for cell in cells)
    assert "100%" in ran.stderr  # the progress bar


def test_runs_go_to_the_ignored_folder_beside_the_book(tmp_path: Path) -> None:
    write_book(tmp_path)
    plan = plan_run(load_manifest(tmp_path / "book.yml"), "toy", budget="small")
    assert plan.run_dir.parent == tmp_path / "runs" / "toy"
    assert plan.run_dir.name.startswith("small-")
    assert plan.parameters == {"steps": 5, "rate": 0.1}  # 1.0e-1 in the YAML


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "toi"], "unknown chapter 'toi'; did you mean 'toy'"),
        (["run", "later"], "chapter 'later' is planned"),
        (["run", "toy", "--budget", "smal"], "did you mean 'small'"),
        (["run", "toy", "-p", "stepps=3"], "unknown parameter 'stepps'; did you mean 'steps'"),
        (["run", "toy", "-p", "steps"], "-p takes name=value"),
        (["run", "toy", "-p", "steps=many"], "parameter steps is int, got 'many'"),
        (["run", "toy", "-p", "flip=1"], "parameter flip is bool, got 1"),
        (["run", "toy", "--data", "./nowhere"], "no such file or folder"),
        (["run", "toy", "--book", "nowhere.yml"], "does not exist"),
        (["record", "toy", "--device", "gpu"], "--device gpu: no such device. Pass cpu, cuda, or cuda:N"),
        (["keep", "toy", "--device", "gpu"], "--device gpu: no such device. Pass cpu, cuda, or cuda:N"),
        (["notebook", "toi", "--check"], "did you mean 'toy'"),
        (["data", "inspect", "nowhere"], "no such folder"),
    ],
)
def test_mistakes_are_named_before_anything_starts(
    tmp_path: Path, here: Here, arguments: list[str], message: str
) -> None:
    write_book(tmp_path)
    code, told = here(*arguments)
    assert code == 2
    assert message in told
    assert "Traceback" not in told
    assert not (tmp_path / "runs").exists()


def test_outside_a_book_the_checkout_is_found(tmp_path: Path) -> None:
    assert find_book(tmp_path) == Path(__file__).resolve().parents[2] / "book.yml"
    book = write_book(tmp_path)
    inside = tmp_path / "chapters" / "01_toy"
    assert find_book(inside) == book


def test_the_environment_names_the_budget_when_the_command_does_not(tmp_path: Path) -> None:
    manifest = load_manifest(write_book(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVSSL_BUDGET", "full-big")
        assert plan_run(manifest, "toy").budget == "full-big"
        assert plan_run(manifest, "toy", budget="smoke").budget == "smoke"
        patch.delenv("AVSSL_BUDGET")
        assert plan_run(manifest, "toy").budget == "small"


def test_data_and_dry_run_reach_the_notebook(tmp_path: Path) -> None:
    manifest = load_manifest(write_book(tmp_path))
    (tmp_path / "clips é").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        plan = plan_run(manifest, "toy", budget="smoke", data="clips é", dry_run=True)
        assert plan.parameters["data"] == str(tmp_path / "clips é")  # the kernel runs elsewhere
        assert plan.parameters["dry_run"] is True
        assert plan_run(manifest, "toy", budget="smoke", data="grid_lips").parameters["data"] == "grid_lips"
        assert plan_run(manifest, "toy", budget="smoke", overrides=["data=clips é"]).parameters["data"].startswith("/")


PLACES = """
# %%
print("places", os.environ["AVSSL_DATA"], os.environ.get("AVSSL_CACHE"))
"""


def test_relative_folders_are_those_of_where_the_command_was_typed(tmp_path: Path) -> None:
    """For the kernel of a run and for that of a committed notebook."""
    book = write_book(tmp_path, PLACES)
    notebook = tmp_path / "chapters" / "01_toy" / "toy.ipynb"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    given = {"AVSSL_DATA": "videos", "AVSSL_CACHE": "../cache"}
    told = f"places {elsewhere / 'videos'} {tmp_path / 'cache'}"
    ran = avssl("run", "toy", "--budget", "smoke", "--book", book, "--out", "out", cwd=elsewhere, **given)
    assert ran.returncode == 0, ran.stderr
    assert told in (elsewhere / "out" / "toy.log").read_text()
    ran = avssl("notebook", "toy", "--book", book, cwd=elsewhere, **given)
    assert ran.returncode == 0, ran.stderr
    assert told in notebook.read_text()
    avssl("notebook", "toy", "--book", book, cwd=elsewhere)
    assert f"places {tmp_path / 'data'} None" in notebook.read_text()  # the default is the checkout's


def test_before_a_run_the_chapter_finds_the_same_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constant = 'HERE = Path("toy.py").resolve(strict=True)\n'
    cells = DRY.replace("os.getcwd()", 'os.environ["AVSSL_DATA"]').replace(
        "def make_config", f"{constant}def make_config"
    )
    manifest = load_manifest(write_book(tmp_path, cells))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AVSSL_DATA", "videos")
    plan = plan_run(manifest, "toy", budget="smoke")
    own = replace(plan, parameters={"steps": 4, "rate": 2})  # what the toy's make_config takes
    monkeypatch.chdir("/")  # a job of a cluster may start anywhere
    assert measure(own)["where"] == str(tmp_path / "videos")
    assert os.environ["AVSSL_DATA"] == "videos"


def test_a_corpus_that_the_chapter_does_not_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the chapter says which it takes by name."""
    head = HEAD.replace("# a folder, or the name of a corpus", '# "playground", or a folder of video files')
    manifest = load_manifest(write_book(tmp_path, head=head))
    for budget, name in (("grid", "grid"), ("full-big", "everything")):
        (tmp_path / "chapters" / "01_toy" / f"{budget}.yaml").write_text(f"data: {name}\n")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    (tmp_path / "grid").mkdir()

    def data(budget: str = "smoke", **options: Any) -> str:
        return plan_run(manifest, "toy", budget=budget, **options).parameters["data"]

    for options in ({"data": "grd"}, {"overrides": ["data=grd"]}):
        with pytest.raises(UsageError, match="unknown corpus 'grd'; did you mean 'grid'") as refused:
            data(**options)
        assert str(refused.value).endswith(f"Valid: playground, grid. Nor is it a folder in {tmp_path}.")
    assert data(data="clips") == str(tmp_path / "clips")
    assert data(data="grid") == data("grid") == "grid"  # not the folder: that is ./grid
    assert data(data="./grid") == str(tmp_path / "grid")
    assert data("full-big") == "everything"  # stands for what the reader has; a dry run does without


def test_a_chapter_without_a_data_parameter_says_so(tmp_path: Path) -> None:
    head = HEAD.replace('data: str = "playground"', "other: int = 0")
    manifest = load_manifest(write_book(tmp_path, head=head))
    with pytest.raises(UsageError, match="has no parameter 'data'"):
        plan_run(manifest, "toy", budget="smoke", data="grid_lips")


DRY = """
# %%
def make_config(steps: int = 3, rate: float = 0.5) -> dict:
    if rate < 0:
        raise ValueError(f"rate={rate} must not be negative")
    return {"steps": steps, "rate": rate}


def dry_run(config: dict) -> dict:
    return {"hours": config["steps"] * config["rate"], "where": os.getcwd()}


# %%
raise SystemExit("the notebook itself must not run")
"""


def test_a_dry_run_is_the_chapters_own_function_on_its_configuration(tmp_path: Path, here: Here) -> None:
    head = HEAD.replace("dry_run: bool = False", "").replace("dry_run={dry_run}", "")
    write_book(tmp_path, DRY, head=head)
    ran = avssl("run", "toy", "--budget", "full-big", "-p", "rate=0.25", "--dry-run", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "250.0" in ran.stdout
    assert str(tmp_path / "chapters" / "01_toy") in ran.stdout
    assert "nothing was trained" in ran.stdout
    for ranks in ("1", "2"):  # on several, before any of them starts
        code, told = here("run", "toy", "--budget", "smoke", "-p", "rate=-1", "--dry-run", "--nproc", ranks)
        assert code == 2
        assert "must not be negative" in told
        assert not (tmp_path / "runs").exists()
    write_book(tmp_path, head=head)
    code, told = here("run", "toy", "--budget", "smoke", "--dry-run")
    assert code == 2
    assert "defines no make_config and no dry_run" in told


CHECKED = """
# %% tags=["define"]
def make_config(**values):
    return {"rate": 0.5} | values


def check_values(config):
    if config["rate"] < 0:
        raise ValueError(f"rate={config['rate']}: must be 0 or more")


# %%
(run_dir / "ran").touch()
"""


def test_what_the_chapter_refuses_is_refused_before_its_notebook_runs(tmp_path: Path, here: Here) -> None:
    write_book(tmp_path, CHECKED)
    code, told = here("run", "toy", "--budget", "smoke", "-p", "rate=-1", "--out", str(tmp_path / "out"))
    assert code == 2, told
    assert "rate=-1: must be 0 or more" in told
    assert not (tmp_path / "out").exists()
    assert here("run", "toy", "--budget", "smoke", "--out", str(tmp_path / "out"))[0] == 0
    assert (tmp_path / "out" / "ran").exists()


def test_a_failing_cell_ends_the_run_with_its_traceback(tmp_path: Path) -> None:
    write_book(tmp_path, "\n# %%\nraise ArithmeticError('cannot go on')\n")
    ran = avssl("run", "toy", "--budget", "smoke", "--out", "out", cwd=tmp_path)
    assert ran.returncode == 1
    assert "ArithmeticError: cannot go on" in ran.stderr
    assert str(tmp_path / "out" / "toy.ipynb") in ran.stderr
    assert "papermill.exceptions" not in ran.stderr  # the chapter's traceback, not ours


def test_a_killed_kernel_names_the_cell_it_was_in(tmp_path: Path) -> None:
    cells = "\n# %%\nimport signal\n\nos.kill(os.getpid(), signal.SIGKILL)\n"
    plan = plan_run(load_manifest(write_book(tmp_path, cells)), "toy", budget="smoke", out=tmp_path / "out")
    with pytest.raises(ChapterFailed, match="the kernel died in cell") as caught:
        execute(plan, progress=False)
    assert "signal.SIGKILL" in str(caught.value)
    assert caught.value.kernel_died


def test_the_users_own_ipython_startup_does_not_belong_in_a_run(tmp_path: Path) -> None:
    startup = tmp_path / "mine" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00.py").write_text("raise SystemExit('the user's own start-up file ran')")
    plan = plan_run(load_manifest(write_book(tmp_path)), "toy", budget="smoke", out=tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path / "mine"))
        outcome = execute(plan, progress=False)
        assert os.environ["IPYTHONDIR"] == str(tmp_path / "mine")  # put back
    assert outcome.claims[0]["id"] == "adds-up"
    assert "AVSSL_RUN_DIR" not in os.environ


def test_claims_files_of_both_forms_and_of_none(tmp_path: Path) -> None:
    assert read_claims(tmp_path) == []
    (tmp_path / "claims.json").write_text('[{"id": "a"}]')
    assert read_claims(tmp_path) == [{"id": "a"}]
    for broken in ("{", "3", '["a"]', '{"other": []}'):
        (tmp_path / "claims.json").write_text(broken)
        with pytest.raises(UsageError, match=r"claims\.json"):
            read_claims(tmp_path)


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        ("int", "3", 3),
        ("float", "3", 3),
        ("float", "1e-3", 0.001),
        ("bool", "true", True),
        ("str", "3", "3"),
        ("str", "no", "no"),
        ("str | None", "null", None),
        ("int | None", "null", None),
        ("int | None", "4", 4),
        ("tuple[int, ...]", "[1, 2]", [1, 2]),
    ],
)
def test_values_of_the_command_line_are_typed(annotation: str, text: str, value: object) -> None:
    parsed = Parameter("x", annotation).parse(text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text"), [("int", "3.5"), ("int", "true"), ("float", "fast"), ("bool", "1"), ("int", "null")]
)
def test_values_of_the_wrong_type_are_refused(annotation: str, text: str) -> None:
    with pytest.raises(UsageError, match="parameter x is"):
        Parameter("x", annotation).parse(text)


def test_a_budget_is_checked_against_the_parameters_cell(tmp_path: Path) -> None:
    write_book(tmp_path)
    parameters = declared(read_script(tmp_path / "chapters" / "01_toy" / "toy.py"))
    assert list(parameters) == ["steps", "rate", "flip", "note", "data", "dry_run"]
    budget = tmp_path / "budget.yaml"
    for content, message in [
        ("stepps: 3", "unknown parameter in budget.yaml 'stepps'"),
        ("steps: lots", "parameter steps is int"),
        ("- steps", "flat mapping"),
        ("steps: [", "not valid YAML"),
    ]:
        budget.write_text(content)
        with pytest.raises(UsageError, match=message):
            read_budget(budget, parameters)
    budget.write_text("")
    assert read_budget(budget, parameters) == {}
    assert read_overrides(["note=a=b"], parameters) == {"note": "a=b"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("# %%\nx = 1\n", "found 0"),
        ('# %% tags=["parameters"]\nx: int = 1\n\n# %% tags=["parameters"]\ny: int = 1\n', "found 2"),
        ('# %% tags=["parameters"]\nx = 1\n', "without a type"),
    ],
)
def test_a_parameters_cell_is_one_and_typed(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "c.py").write_text(source)
    with pytest.raises(UsageError, match=message):
        declared(read_script(tmp_path / "c.py"))


def test_list_shows_every_chapter_of_the_manifest(tmp_path: Path) -> None:
    write_book(tmp_path)
    ran = avssl("list", cwd=tmp_path)
    assert ran.returncode == 0
    for text in ("toy", "On Toys (ICTT 2021)", "runs", "smoke 30 s (1 CPU core)", "full-big 10 h (8 GPUs)"):
        assert text in ran.stdout
    later = next(line for line in ran.stdout.splitlines() if "later" in line)
    assert "planned" in later


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": "done"}, "has state 'done'"),
        ({"paper": None}, "lacks paper"),
        ({"budgets": {"smoke": {"minutes": 1}}}, "budget 'smoke'"),
    ],
)
def test_a_broken_manifest_says_what_is_wrong(tmp_path: Path, change: dict[str, object], message: str) -> None:
    book = write_book(tmp_path)
    content = yaml.safe_load(book.read_text())
    entry = content["meta"]["chapters"][0] | change
    content["meta"]["chapters"][0] = {key: value for key, value in entry.items() if value is not None}
    book.write_text(yaml.safe_dump(content))
    with pytest.raises(UsageError, match=message):
        load_manifest(book)


def test_a_book_without_a_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "book.yml").write_text("root: index\n")
    with pytest.raises(UsageError, match=r"meta\.chapters"):
        load_manifest(tmp_path / "book.yml")


def test_a_rank_needs_a_run_directory_all_ranks_agree_on(tmp_path: Path) -> None:
    write_book(tmp_path)
    rank = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    ran = avssl("run", "toy", cwd=tmp_path, **rank)
    assert ran.returncode == 2
    assert "needs --out" in ran.stderr
