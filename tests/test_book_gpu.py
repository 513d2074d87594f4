"""Times on a GPU: the tool that takes them, and the pages that print them.

No test here needs a GPU. Those of the pages need Sphinx, that is, the extra
``book``; they are skipped where it is not installed.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import gpu_times
import nbformat
import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parents[1]
NO_BOOK = any(
    importlib.util.find_spec(name) is None
    for name in ("myst_nb", "pydata_sphinx_theme")
)
needs_book = pytest.mark.skipif(NO_BOOK, reason="no Sphinx: run `make book`")
RECORD = {
    "device": "NVIDIA H100",
    "torch": "2.11.0+cu130",
    "transformers": "5.17.0",
    "python": "3.12.3",
    "date": "2026-11-27",
    "cores": 16,
    "side_by_side": 8,
    "seconds": {"one": 8.2, "two": 31.4},
    "used_gpu": {"one": False, "two": True},
    "gpu_megabytes": {"one": 0.0, "two": 57.6},
    "failed": {},
}


def notebook(path, *sources):
    """Write a notebook with these code cells."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.fixture
def cpu():
    """Run the tool here; return its status and what it wrote."""

    def run(folder, *arguments):
        out = folder / "times.json"
        options = ["--allow-cpu", "--out", out, *arguments]
        with mock.patch.dict(os.environ):  # it sets some for its kernels
            status = gpu_times.main([str(option) for option in options])
        return status, json.loads(out.read_text("utf-8"))

    return run


# The tool


def test_refuses_without_a_gpu(tmp_path, monkeypatch, capsys):
    """Seconds of a CPU are never written as those of a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "times.json"
    with pytest.raises(SystemExit) as error:
        gpu_times.main(["--out", str(out)])
    assert error.value.code == 2
    assert "sees no CUDA device" in capsys.readouterr().err
    assert not out.exists()


def test_a_cpu_run_does_not_go_into_the_book(capsys):
    """``--allow-cpu`` has no default place."""
    with pytest.raises(SystemExit) as error:
        gpu_times.main(["--allow-cpu"])
    assert error.value.code == 2
    assert "needs --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["absent.ipynb"], ["--jobs", "0"]], ids=lambda a: a[0]
)
def test_refuses_what_it_cannot_run(tmp_path, arguments):
    """A misspelt name is an error before the first run, not after it."""
    out = tmp_path / "times.json"
    with pytest.raises(SystemExit) as error:
        gpu_times.main(["--allow-cpu", "--out", str(out), *arguments])
    assert error.value.code == 2


def test_records_a_notebook(tmp_path, cpu, capsys, monkeypatch):
    """Seconds, versions, and no word of a GPU that was not used."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = notebook(
        tmp_path / "tiny.ipynb",
        "import os, time\nfrom pathlib import Path\ntime.sleep(0.3)",
        "Path('here.txt').write_text(os.environ['HF_HUB_OFFLINE'])",
    )
    before = path.read_bytes()
    status, record = cpu(tmp_path, path)
    assert status == 0
    assert set(record) == set(RECORD)
    assert 0.3 < record["seconds"]["tiny"] < 100
    assert record["used_gpu"] == {"tiny": False}
    assert record["failed"] == {}
    assert (record["device"], record["side_by_side"]) == ("CPU", 1)
    assert record["torch"] == torch.__version__
    assert path.read_bytes() == before
    assert (tmp_path / "here.txt").read_text() == "1"
    assert not list(tmp_path.glob("*.tmp"))
    assert "tiny: " in capsys.readouterr().out


def test_names_a_failing_notebook(tmp_path, cpu, capsys):
    """With its error; the one beside it keeps its seconds."""
    bad = notebook(tmp_path / "bad.ipynb", "1", "raise ValueError('no\\nway')")
    good = notebook(
        tmp_path / "good.ipynb",
        "import os; assert os.environ['OMP_NUM_THREADS'] == '2'",
    )
    status, record = cpu(tmp_path, "--jobs", 2, bad, good)
    assert status == 1
    assert record["failed"] == {"bad": "ValueError: no"}
    assert set(record["seconds"]) == set(record["used_gpu"]) == {"good"}
    assert record["side_by_side"] == 2
    said = capsys.readouterr()
    assert "ValueError: no" in said.out
    assert "failed: bad" in said.err


def test_a_broken_file_is_a_failure_too(tmp_path, cpu):
    """It costs no other notebook its seconds."""
    path = tmp_path / "broken.ipynb"
    path.write_text("{", "utf-8")
    status, record = cpu(tmp_path, path)
    assert status == 1
    assert list(record["failed"]) == ["broken"]


# The record


@pytest.mark.skipif(not gpu_times.OUT.exists(), reason="no run on a GPU yet")
def test_record_is_a_full_run_on_a_gpu():
    """Every chapter of the book has its seconds, and none failed."""
    record = json.loads(gpu_times.OUT.read_text("utf-8"))
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text("utf-8"))
    pages = [p["file"] for part in toc["parts"] for p in part["chapters"]]
    names = {
        Path(page).name
        for page in (toc["root"], *pages)
        if (ROOT / f"{page}.ipynb").exists()
    }
    files = {path.stem for path in (ROOT / "chapters").glob("*.ipynb")}
    assert names == files
    again = "run tools/gpu_times.py on a GPU, or delete gpu_times.json"
    assert set(record) == set(RECORD), again
    assert set(record["seconds"]) == files, again
    assert set(record["used_gpu"]) == files, again
    assert record["failed"] == {}
    assert record["device"] != "CPU"


# The pages


HERE = "12 s on CPU here (torch T, Python P)"
THERE = "8 s on a machine with a GPU (NVIDIA H100)"
READING = "about 20 minutes of reading"


@needs_book
@pytest.mark.parametrize(
    ("runtime", "gpu", "note"),
    [
        (None, None, READING.capitalize()),
        (11.9, None, f"Runs in {HERE} · {READING}"),
        (11.9, 8.2, f"Runs in {HERE}, {THERE} · {READING}"),
        (None, 8.2, f"Runs in {THERE} · {READING}"),
        (11.9, math.inf, f"Runs in {HERE} · uses no GPU · {READING}"),
        (None, math.inf, f"Uses no GPU · {READING}"),
    ],
)
def test_note_under_a_title(monkeypatch, runtime, gpu, note):
    """What was not measured is not said; infinity stands for not used."""
    import dblm_sphinx

    monkeypatch.setattr(dblm_sphinx, "device", lambda: "CPU")
    monkeypatch.setattr(dblm_sphinx, "_version", lambda name: "T")
    monkeypatch.setattr(dblm_sphinx.platform, "python_version", lambda: "P")
    run = runtime and {"runtime": runtime}
    times = gpu and (None if gpu == math.inf else gpu, "NVIDIA H100")
    assert dblm_sphinx.running_note(run, 20, times) == note


@needs_book
def test_table_names_machine_and_use():
    """Versions, date, and whether a chapter used the GPU at all."""
    import dblm_sphinx

    assert "No run" in dblm_sphinx.gpu_table({})
    table = dblm_sphinx.gpu_table(RECORD)
    for key in ("device", "torch", "transformers", "python", "date"):
        assert RECORD[key] in table
    assert "8 chapters at a time" in table
    assert "| {doc}`one` | 8.2 | not used |" in table
    assert "| {doc}`two` | 31.4 | 58 MB |" in table


# A book of two pages and a chapter that counts how often it runs.
PAGES = {
    "conf.py": """
import pathlib
import dblm_sphinx

dblm_sphinx.GPU_TIMES = pathlib.Path(__file__).with_name("gpu_times.json")
dblm_sphinx.fingerprint = lambda: "the same library"
dblm_sphinx.copy_mathjax = lambda app: None
extensions = ["myst_nb", "dblm_sphinx"]
nb_execution_mode = "cache"
""",
    "index.md": "# Book\n\n```{toctree}\none\ntwo\ntable\n```\n",
    "two.md": "# Two\n",
    "table.md": "# Table\n\n```{gpu-times}\n```\n",
}


def running(page):
    """Return the line under the title of a page."""
    return page.split('class="running-note"', 1)[1].split("</p>", 1)[0]


@needs_book
def test_new_times_change_pages_and_run_nothing(tmp_path):
    """Pages follow the file, when it comes and when it goes."""
    source, out, runs = (tmp_path / name for name in ("src", "out", "runs"))
    source.mkdir()
    for name, text in PAGES.items():
        (source / name).write_text(text, "utf-8")
    count = f"with open({str(runs)!r}, 'a') as file:\n    file.write('x')"
    chapter = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# One"),
            nbformat.v4.new_code_cell(count),
        ]
    )
    nbformat.write(chapter, source / "one.ipynb")

    def build():
        command = [sys.executable, "-m", "sphinx", "-q", "-W", "-n"]
        done = subprocess.run(
            [*command, source, out],
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT / "tools")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        names = ("one.html", "table.html")
        return [(out / name).read_text("utf-8") for name in names]

    chapter, table = build()
    assert "GPU" not in running(chapter)
    assert "No run on a GPU is on record" in table
    (source / "gpu_times.json").write_text(json.dumps(RECORD), "utf-8")
    chapter, table = build()
    assert "uses no GPU" in running(chapter)
    assert 'href="one.html"' in table.split("<table", 1)[1]
    assert "58 MB" in table
    (source / "gpu_times.json").unlink()
    chapter, table = build()
    assert "GPU" not in running(chapter)
    assert "No run on a GPU is on record" in table
    assert runs.read_text("utf-8") == "x"
