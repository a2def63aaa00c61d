"""tools.run_course on tiny notebooks, executed by the real papermill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tools import course_report, run_course

ROOT = Path(__file__).resolve().parents[2]

FIRST = """\
import json, os, sys
from pathlib import Path

def record(kind, name, **recipe):
    folder = Path(os.environ["WORKSPACE"]) / kind / name
    folder.mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(recipe))

rows = {"in": 10, "kept": 8, "rejected": 2, "train": 6, "test": 2}
record("datasets", "my-dataset", rows=rows)
print(json.dumps({
    "DATASET": DATASET, "MODEL": MODEL, "RATE": RATE, "cwd": os.getcwd(),
    "python": sys.executable, "headless": os.environ["HEADLESS"],
}))"""
SECOND = """\
ballast = bytearray(os.urandom(1 << 20) * 300)
accuracy = {"base": 0.0, "tuned": 0.9, "invented": 0.1, "chance": 0.05}
record("adapters", "another", results={"accuracy": {"base": 1.0, "tuned": 1.0}})
record("adapters", "my-adapter", results={"accuracy": accuracy})
results = {"accuracy": {"merged": 0.875}, "agreement": 1.0}
record("models", "my-llama", results=results)
print(f"trained {MODEL}")"""
RECORD = FIRST[: FIRST.index("rows =")]


def write(folder: Path, name: str, parameters: str, *sources: str) -> None:
    cells = [
        new_markdown_cell("# Title"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        *map(new_code_cell, sources),
    ]
    metadata = {
        "kernelspec": {"display_name": "Python 3", "name": "python3"},
        "language_info": {"name": "python"},
    }
    folder.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata=metadata), folder / name)


def command(folder: Path, *arguments: str) -> list[str]:
    places = ["--folder", str(folder), "--out", str(folder.parent / "runs")]
    return [sys.executable, "-m", "tools.run_course", *places, *arguments]


def run(
    folder: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *arguments),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two notebooks that write the recipes of a whole course."""
    folder = tmp_path_factory.mktemp("course") / "notebooks"
    parameters = 'DATASET = "demo"  # @param\nMODEL = "auto"  # @param\nRATE = 1.0'
    write(folder, "01_first.ipynb", parameters, FIRST)
    write(folder, "02_second.ipynb", 'MODEL = "auto"', RECORD, SECOND)
    write(folder, "draft.ipynb", "", "1 / 0")
    return folder


@pytest.fixture(scope="module")
def done(two: Path) -> tuple[Path, str]:
    """Run both notebooks with parameters; the run's folder and its printed text."""
    (two.parent / "mine.csv").write_text("question,answer\n")
    # A machine may have a kernel of another Python under the same name.
    other = two.parent / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "Another", "language": "python"}
    (other / "kernel.json").write_text(json.dumps(spec))
    arguments = ["--dataset", "mine.csv", "--parameters", "RATE=2e-4"]
    result = run(two, *arguments, JUPYTER_PATH=str(two.parent / "jupyter"))
    assert result.returncode == 0, result.stdout + result.stderr
    return (two.parent / "runs" / "latest").resolve(), result.stdout


@pytest.mark.slow
def test_run_passes_parameters_to_notebooks(done: tuple[Path, str], two: Path) -> None:
    folder, _ = done
    executed = nbformat.read(folder / "01_first.ipynb", as_version=4)
    assert json.loads(executed.cells[-1].outputs[0].text) == {
        "DATASET": str(two.parent / "mine.csv"),
        "MODEL": "demo",
        "RATE": 2e-4,
        "cwd": str(ROOT),
        "python": sys.executable,
        "headless": "1",
    }
    executed = nbformat.read(folder / "02_second.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "trained demo\n"


@pytest.mark.slow
def test_summary_contains_results_of_recipes(done: tuple[Path, str]) -> None:
    folder, _ = done
    summary = json.loads((folder / "summary.json").read_text())
    runs = summary.pop("notebooks")
    assert summary == {
        "dataset": {"rows_in": 10, "rows_kept": 8, "rejected": 2},
        "accuracy": {
            "base": 0.0,
            "tuned": 0.9,
            "invented": 0.1,
            "chance": 0.05,
            "merged": 0.875,
        },
        "agreement": 1.0,
    }
    assert list(runs) == ["01_first", "02_second"]
    assert all(set(one) == {"seconds", "peak_rss_gib"} for one in runs.values())
    # The second notebook allocates 300 MiB more.
    small, large = (one["peak_rss_gib"] for one in runs.values())
    assert small + 0.2 < large < 2


@pytest.mark.slow
def test_table_contains_summary(done: tuple[Path, str]) -> None:
    folder, printed = done
    for line in (
        "[1/2] 01_first ...",
        "[2/2] 02_second ...",
        "kept 8 of 10 rows, 2 rejected",
        "accuracy   base         0.0%",
        "accuracy   tuned       90.0%",
        "accuracy   merged      87.5%",
        "agreement  merged and adapter 100.0%",
    ):
        assert line in printed
    assert str(folder / "summary.json") in printed


@pytest.mark.slow
def test_run_writes_notebooks_html_and_workspace(done: tuple[Path, str]) -> None:
    folder, _ = done
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "01_first.ipynb",
        "01_first.html",
        "02_second.ipynb",
        "02_second.html",
        "summary.json",
        "workspace",
    }
    assert "trained demo" in (folder / "02_second.html").read_text()
    link = folder.parent / "latest"
    assert os.readlink(link) == folder.name


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"rows": 3, "results": 3}',
        '{"rows": {"in": "3"}, "results": null}',
        '{"rows": {}, "results": {"accuracy": [1], "loss": {"base": "x", "y": null}}}',
        '{"results": {"agreement": "all", "accuracy": null}}',
    ],
)
def test_summary_survives_damaged_recipes(tmp_path: Path, content: str) -> None:
    """The notebooks have run by then: their numbers must not be lost."""
    for kind, name in (
        ("datasets", "my-dataset"),
        ("adapters", "my-adapter"),
        ("models", "my-llama"),
    ):
        (tmp_path / kind / name).mkdir(parents=True)
        (tmp_path / kind / name / "recipe.json").write_text(content)
    ran = {"01_a": {"seconds": 1.0, "peak_rss_gib": 0.5, "claims": []}}
    text = course_report.table(course_report.summarize(tmp_path, ran))
    assert text.split() == ["notebook", "seconds", "peak", "GiB", "01_a", "1.0", "0.50"]


def test_summarize_loss_without_accuracy(tmp_path: Path) -> None:
    for kind, name, loss in (
        ("adapters", "a", {"base": 3.0, "tuned": 2.0}),
        ("models", "b", {"tuned": 2.5, "merged": 2.01}),  # of an older adapter
    ):
        folder = tmp_path / kind / name
        folder.mkdir(parents=True)
        recipe = {"results": {"loss": loss}}
        (folder / "recipe.json").write_text(json.dumps(recipe))
    summary = course_report.summarize(tmp_path, {})
    assert summary == {
        "loss": {"base": 3.0, "tuned": 2.0, "merged": 2.01},
        "notebooks": {},
    }
    assert "loss       merged      2.010" in course_report.table(summary)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--parameters", "EPOCHS=1"], "no notebook has the parameter EPOCHS"),
        (["--parameters", "EPOCHS=1"], "there are: DATASET, MODEL, RATE"),
        (["--parameters", "EPOCHS"], "'EPOCHS' is not NAME=value"),
        (["--parameters", "2X=1"], "'2X=1' is not NAME=value"),
        (["--notebooks", "01", "07"], "no notebook begins with 07"),
        (["--dataset", "absent.csv"], "absent.csv does not exist"),
        (["--dataset", "./absent"], "./absent does not exist"),
        (["--model", "/absent/llama"], "/absent/llama does not exist"),
    ],
)
def test_wrong_argument_is_reported_before_any_notebook_runs(
    two: Path,
    tmp_path: Path,
    arguments: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(two.parent)
    out = tmp_path / "runs"
    try:
        status = run_course.main(["--folder", str(two), *arguments, "--out", str(out)])
    except SystemExit as end:  # of argparse
        status = end.code
    errors = capsys.readouterr().err
    assert status == 2
    assert expected.lower() in errors.lower()
    assert "Traceback" not in errors
    assert not out.exists()


def test_existing_path_keeps_names_that_are_not_files(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    (tmp_path / "rows.jsonl").write_text("")
    link = "https://example.org/rows.csv"
    for name in ("demo", "owner/dataset", "owner/model-1.1B", link):
        assert run_course.existing_path(name) == name
    for name in ("rows.jsonl", "*.jsonl"):  # a notebook runs in another folder
        assert run_course.existing_path(name) == str(tmp_path / name)
    with pytest.raises(run_course.CourseError):
        run_course.existing_path("*.csv")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("X=1", 1),
        ("X=1e-4", 1e-4),
        ("X=true", True),
        ("X=False", False),
        ("X=None", None),
        ("X=[1, 2]", [1, 2]),
        ("X='7'", "7"),
        ("X=no", "no"),
        ("X=", ""),
        ("X=a=b", "a=b"),
    ],
)
def test_parameter_reads_literals_and_keeps_other_text(
    text: str, value: object
) -> None:
    assert run_course.parameter(text) == ("X", value)


SCALARS = st.none() | st.booleans() | st.integers() | st.text()


@given(value=SCALARS | st.lists(SCALARS) | st.dictionaries(st.text(), SCALARS))
def test_parameter_round_trips_json_and_python_literals(value: object) -> None:
    assert run_course.parameter(f"X={json.dumps(value)}") == ("X", value)
    assert run_course.parameter(f"X={value!r}") == ("X", value)


@pytest.mark.slow
def test_failing_cell_is_named_and_its_notebook_kept(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    write(folder, "01_first.ipynb", "MODEL = 1", "print('before')", "{}['missing key']")
    write(folder, "02_second.ipynb", "", "print('never')")
    result = run(folder)
    assert result.returncode == 1
    page = (tmp_path / "runs" / "latest").resolve() / "01_first.html"
    assert "Cell 4 of 01_first.ipynb raised:" in result.stdout
    assert "KeyError: 'missing key'" in result.stdout
    assert str(page) in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    assert "missing key" in page.read_text()
    executed = nbformat.read(page.with_suffix(".ipynb"), as_version=4)
    assert any("before" in str(cell.get("outputs")) for cell in executed.cells)
    summary = json.loads((page.parent / "summary.json").read_text())
    assert list(summary["notebooks"]) == ["01_first"]
    assert "02_second ..." not in result.stdout


@pytest.mark.slow
def test_dead_kernel_is_explained(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    write(folder, "01_first.ipynb", "", "import os", "os.kill(os.getpid(), 9)")
    result = run(folder)
    assert result.returncode == 1
    assert "The kernel died" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    assert (tmp_path / "runs" / "latest" / "01_first.html").exists()


@pytest.mark.slow
def test_ctrl_c_stops_run_and_kernel(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    started = tmp_path / "started"
    wait = f"import os, time\nopen({str(started)!r}, 'w').write(str(os.getpid()))"
    write(folder, "01_first.ipynb", "", "1")
    write(folder, "02_second.ipynb", "", wait, "time.sleep(100)")
    process = subprocess.Popen(
        command(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        # A shell that starts the tests in the background lets them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(600):
        if started.exists() and started.read_text():
            break
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped." in errors
    assert "Traceback" not in printed + errors
    summary = json.loads((tmp_path / "runs" / "latest" / "summary.json").read_text())
    assert list(summary["notebooks"]) == ["01_first"]
    with pytest.raises(ProcessLookupError):  # the kernel has ended too
        os.kill(int(started.read_text()), 0)


@pytest.mark.slow
def test_secrets_are_removed_from_notebooks_and_html(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    secret, found = "not-a-real-&-token", "hf_" + "x" * 34
    write(
        folder,
        "01_first.ipynb",
        "",
        "import os\nprint('it is', os.environ['HF_TOKEN'], '" + found + "')",
        "raise ValueError(os.environ['HF_TOKEN'])",
    )
    result = run(folder, HF_TOKEN=secret)
    assert result.returncode == 1
    assert "01_first.ipynb contained a token" in result.stdout
    files = [*(tmp_path / "runs" / "latest").resolve().rglob("*.*")]
    texts = [path.read_text() for path in files] + [result.stdout, result.stderr]
    assert any("it is *** hf_***" in text for text in texts)
    assert len(texts) == 5
    for text in texts:
        assert "not-a-real" not in text
        assert found not in text


@pytest.mark.slow
def test_killed_run_leaves_no_secret(tmp_path: Path) -> None:
    folder, printed = tmp_path / "notebooks", tmp_path / "printed"
    secret = "not-a-real-&-token"
    show = "import os, sys, time\nfor part in os.environ['HF_TOKEN'], '.':\n"
    show += "    for letter in part:\n        sys.stdout.write(letter)\n"
    show += "        sys.stdout.flush()\n        time.sleep(0.05)"
    wait = f"open({str(printed)!r}, 'w').write('1')\ntime.sleep(100)"
    write(folder, "01_first.ipynb", "", show, wait)
    process = subprocess.Popen(
        command(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_TOKEN": secret},
        start_new_session=True,
    )
    for _ in range(600):
        if printed.exists():
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    (path,) = (tmp_path / "runs").rglob("01_first.ipynb")
    text = path.read_text()
    assert "***." in text and secret not in text
    json.loads(text)


def test_link_latest_without_symlinks_prints_newest_run(tmp_path: Path, capsys) -> None:
    folder = tmp_path / "20260101-000000"
    folder.mkdir()
    (tmp_path / "latest").mkdir()  # left by a copy program that follows links
    run_course.link_latest(folder)
    assert str(folder) in capsys.readouterr().out


@pytest.mark.slow
def test_token_in_wrong_parameter_is_never_printed(tmp_path: Path) -> None:
    token = "hf_oauth_" + "Zz9" * 12
    folder = tmp_path / "notebooks"
    write(folder, "01_first.ipynb", "HUB_NAME = ''", "print(HUB_NAME)")
    result = run(folder, "--parameters", f"HUB_NAME=u/{token}")
    assert result.returncode == 0
    texts = [p.read_text() for p in (tmp_path / "runs").rglob("*.*") if p.is_file()]
    assert not any(token in text for text in [*texts, result.stdout, result.stderr])
    result = run(folder, "--dataset", f"/tmp/{token}.csv")
    assert result.returncode == 2 and token not in result.stdout + result.stderr


@pytest.mark.slow
def test_given_workspace_reaches_notebooks(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    write(folder, "01_first.ipynb", "", "import os\nprint(os.environ['WORKSPACE'])")
    given = tmp_path / "mine"
    run(folder, WORKSPACE=str(given))
    page = tmp_path / "runs" / "latest" / "01_first.html"
    assert str(given) in page.read_text()
