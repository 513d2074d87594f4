"""What travels in the wheel is enough to run a chapter on its own."""

import tomllib
import zipfile

import environments
import pytest
import reader_run
from environments import ROOT, Environment

CHAPTER = ROOT / "chapters" / "02_embedding_noising.ipynb"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def wheel():
    """Open the wheel of this checkout."""
    with zipfile.ZipFile(environments.wheel()) as archive:
        yield archive


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Make an environment in which only the wheel brings the library."""
    environment = Environment(tmp_path_factory.mktemp("new") / "env")
    environment.install(environments.wheel())
    return environment


def test_wheel_carries_data_and_library_and_nothing_else(wheel):
    """Each file of data/ and dblm_lib/ is in it, byte by byte."""
    sources = {
        f"dblm_lib/{name}" if name.startswith("data/") else name: name
        for name in environments.project_files("dblm_lib", "data")
    }
    inside = {n for n in wheel.namelist() if ".dist-info/" not in n}
    assert inside == set(sources)
    for name, source in sources.items():
        assert wheel.read(name) == (ROOT / source).read_bytes(), name


def test_every_package_is_named():
    """setuptools packs what pyproject.toml names: no folder is forgotten."""
    folders = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "dblm_lib").rglob("__init__.py")
    }
    named = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(named) == sorted({*folders, "dblm_lib.data"})


@pytest.mark.parametrize(
    "part", ["MANIFEST.json", "tokenizer/", "checkpoints/tales-gpt2/"]
)
def test_wheel_carries_what_chapters_load(wheel, part):
    """Text, tokenizer and checkpoints travel: nothing is downloaded."""
    prefix = f"dblm_lib/data/{part}"
    assert any(name.startswith(prefix) for name in wheel.namelist())


def test_wheel_stays_within_its_budget(wheel):
    """DESIGN: all of data/ at most 40 MB, one file at most 16 MB."""
    sizes = {info.filename: info.file_size for info in wheel.infolist()}
    assert sum(sizes.values()) <= 40 * MEGABYTE
    assert max(sizes.values()) <= 16 * MEGABYTE, max(sizes, key=sizes.get)


def test_wheel_states_version_licences_and_command(wheel):
    """The metadata are those of pyproject.toml; both licences are in."""
    names = wheel.namelist()
    folder = f"dblm-{PROJECT['project']['version']}.dist-info"
    for licence in ("LICENSE", "LICENSE-PROSE.md"):
        name = f"{folder}/licenses/{licence}"
        assert wheel.read(name) == (ROOT / licence).read_bytes()
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert "\nLicense-Expression: MIT\n" in metadata.replace("\r\n", "\n")
    assert f"{folder}/entry_points.txt" in names
    assert (
        "dblm = dblm_lib.cli:main"
        in wheel.read(f"{folder}/entry_points.txt").decode()
    )


def test_new_environment_has_no_library_without_the_wheel(tmp_path):
    """The tests below would prove nothing if ours leaked in."""
    bare = Environment(tmp_path / "env")
    done = environments.run(
        [bare.python, "-c", "import numpy, dblm_lib"], tmp_path, check=False
    )
    assert done.returncode == 1
    assert "No module named 'dblm_lib'" in done.stderr


def test_data_of_the_wheel_are_found_and_whole(installed, tmp_path):
    """The installed library reads its own data/, not the checkout's."""
    code = (
        "from dblm_lib import resources as r; print(r.data_path());"
        "assert r.manifest()"
    )
    done = environments.run([installed.python, "-c", code], tmp_path)
    assert done.stdout.startswith(str(installed.packages))


def test_figures_and_exercises_of_the_wheel_work(installed, tmp_path):
    """Scripts and styles are read from where the library is installed."""
    code = (
        "from dblm_lib import exercises, widgets; print(widgets.__file__);"
        "figure = widgets.grid_explorer([[1]], ['a'], alt='One cell.');"
        "assert 'dblmStart' in figure.html;"
        "assert exercises.verdict('1.1', 9)"
    )
    done = environments.run([installed.python, "-c", code], tmp_path)
    assert done.stdout.startswith(str(installed.packages))


def test_chapter_alone_in_an_empty_folder_runs(installed, tmp_path):
    """A chapter needs the wheel and nothing of the checkout (Colab)."""
    script = ROOT / "tools" / "reader_run.py"
    done = environments.run([installed.python, script, CHAPTER], tmp_path)
    assert f"library in {installed.packages}" in done.stdout


def test_reader_run_fails_with_the_chapter(installed, tmp_path):
    """A cell that raises is a failure, not a line in the output."""
    import nbformat

    notebook = nbformat.read(CHAPTER, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("assert False, 'no'"))
    last = [c for c in notebook.cells if c.cell_type == "code"]
    notebook.cells = [last[0], last[-1]]
    broken = tmp_path / "broken.ipynb"
    nbformat.write(notebook, broken)
    script = ROOT / "tools" / "reader_run.py"
    command = [installed.python, script, broken]
    done = environments.run(command, tmp_path, check=False)
    assert done.returncode == 1
    assert "AssertionError" in done.stderr


def test_changed_packages_are_named():
    """The Colab check reports a change, an addition and a loss."""
    before = {"torch": "2.11.0", "numpy": "2.1.3", "tqdm": "4.67"}
    after = {"torch": "2.13.0", "numpy": "2.1.3", "dblm": "0.1.0", "x": "1"}
    assert reader_run.changed_packages(before, after) == [
        "torch 2.11.0 -> 2.13.0",
        "tqdm 4.67 -> absent",
        "x absent -> 1",
    ]
