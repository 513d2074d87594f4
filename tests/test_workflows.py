"""The workflows are valid, frugal with rights, and run what is promised."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
PATHS = sorted((GITHUB / "workflows").glob("*.yml"))
WORKFLOWS = {
    path.name: yaml.safe_load(path.read_text("utf-8")) for path in PATHS
}
JOBS = {
    f"{name}:{key}": job
    for name, workflow in WORKFLOWS.items()
    for key, job in workflow["jobs"].items()
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
# What a job may do beyond reading the repository, and why it must.
WRITES = {
    "publish.yml:deploy": {"pages", "id-token"},
    "weekly.yml:report": {"issues"},
}
SCHEMAS = [
    ("vendor.github-workflows", "workflows/*.yml"),
    ("vendor.github-issue-forms", "ISSUE_TEMPLATE/[!c]*.yml"),
    ("vendor.github-issue-config", "ISSUE_TEMPLATE/config.yml"),
    ("vendor.dependabot", "dependabot.yml"),
]


def tool(name):
    """Find a command of this environment, or skip the test."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=beside) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (pip install {name})")
    return found


def validate(*command):
    """Run a validator; fail with what it says."""
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        check=False,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr


def steps(job):
    """List the steps of a job."""
    return JOBS[job].get("steps", [])


def scripts(name):
    """Join everything that a workflow runs in a shell."""
    jobs = WORKFLOWS[name]["jobs"].values()
    return "\n".join(s.get("run", "") for j in jobs for s in j["steps"])


def triggers(name):
    """Return the events of a workflow (YAML 1.1 reads `on` as true)."""
    events = WORKFLOWS[name][True]
    return events if isinstance(events, dict) else dict.fromkeys(events)


# Validators


@pytest.mark.parametrize(("schema", "pattern"), SCHEMAS)
def test_files_follow_their_schema(schema, pattern):
    """The service would refuse, or silently ignore, what the schema does."""
    files = sorted(GITHUB.glob(pattern))
    assert files
    validate(tool("check-jsonschema"), "--builtin-schema", schema, *files)


def test_schema_check_can_fail(tmp_path):
    """A misspelt key is caught."""
    wrong = tmp_path / "wrong.yml"
    text = PATHS[0].read_text("utf-8").replace("runs-on:", "run-on:")
    wrong.write_text(text, "utf-8")
    with pytest.raises(AssertionError, match="run-on"):
        validate(
            tool("check-jsonschema"),
            *("--builtin-schema", "vendor.github-workflows", wrong),
        )


def test_zizmor_finds_nothing():
    """The security linter is content, its strictest persona included."""
    options = ["--offline", "--persona", "pedantic", "--no-progress"]
    validate(tool("zizmor"), *options, GITHUB)


# Rights


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_actions_are_pinned_by_commit(path):
    """``owner/name@40 hex digits  # version``, from GitHub's own alone."""
    text = path.read_text("utf-8")
    uses = re.findall(r"(?m)^\s*(?:- )?uses:\s*(.+)$", text)
    assert len(uses) == text.count("uses:")
    for line in uses:
        pin = r"actions/[\w-]+@[0-9a-f]{40}  # v\d+(\.\d+)*"
        assert re.fullmatch(pin, line), line


def test_an_action_has_one_pin():
    """An update that forgets a file is noticed."""
    text = "\n".join(path.read_text("utf-8") for path in PATHS)
    pins = {}
    for name, pin in re.findall(r"uses:\s*([\w/-]+)@(.+)", text):
        pins.setdefault(name, set()).add(pin)
    assert all(len(found) == 1 for found in pins.values()), pins


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_starts_without_rights(name):
    """Rights are given by job; runs of a branch do not pile up."""
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] == {}
    assert "concurrency" in workflow
    assert "pull_request_target" not in triggers(name)


@pytest.mark.parametrize("job", JOBS)
def test_job_has_the_least_rights_and_a_time_limit(job):
    """Reading the repository, and what ``WRITES`` lists."""
    granted = JOBS[job]["permissions"]
    writes = {key for key, value in granted.items() if value == "write"}
    assert writes == WRITES.get(job, set())
    assert set(granted) - writes <= {"contents"}
    assert JOBS[job]["timeout-minutes"] <= 90
    for step in steps(job):
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


def test_no_secret_but_the_run_token():
    """Nothing to set up, nothing to leak."""
    text = "\n".join(path.read_text("utf-8") for path in PATHS)
    assert "secrets." not in text


# Promises


def test_matrix_holds_the_promised_systems():
    """Three systems and two Pythons; on Linux, oldest and newest torch."""
    matrix = JOBS["tests.yml:matrix"]["strategy"]["matrix"]
    systems = {"ubuntu-latest", "macos-latest", "windows-latest"}
    assert set(matrix["os"]) == systems
    assert set(matrix["python"]) == {"3.11", "3.13"}
    extra = {
        (row["os"], row["python"], row["torch"]): row["requirement"]
        for row in matrix["include"]
    }
    (bound,) = [
        need.removeprefix("torch>=")
        for need in PROJECT["project"]["dependencies"]
        if need.startswith("torch>=")
    ]
    for python in matrix["python"]:
        oldest = extra["ubuntu-latest", python, "oldest"]
        assert oldest == f"torch=={bound}.*"
        assert extra["ubuntu-latest", python, "newest"] == "torch"


def test_matrix_starts_with_the_oldest_supported_python():
    """``requires-python`` promises what the matrix tries."""
    matrix = JOBS["tests.yml:matrix"]["strategy"]["matrix"]
    assert PROJECT["project"]["requires-python"] == f">={matrix['python'][0]}"


def test_gpu_runs_only_where_there_is_one():
    """The variable names the runner; without it, a notice; never for PRs."""
    assert JOBS["gpu.yml:notebooks"]["runs-on"] == "${{ vars.GPU_RUNNER }}"
    assert JOBS["gpu.yml:notebooks"]["if"] == "vars.GPU_RUNNER != ''"
    assert JOBS["gpu.yml:notice"]["if"] == "vars.GPU_RUNNER == ''"
    assert "::notice" in scripts("gpu.yml")
    assert "pull_request" not in triggers("gpu.yml")


def test_colab_installs_by_the_set_up_cell_alone():
    """Colab's image; nothing of ours is installed in it beforehand."""
    text = scripts("colab.yml")
    assert "reader_run.py --colab --wheel" in text
    assert "docker run" in text
    assert "pip install" not in text
    images = {step.get("env", {}).get("IMAGE") for step in steps_of("colab")}
    images.discard(None)
    assert images == {"us-docker.pkg.dev/colab-images/public/runtime"}


def steps_of(stem):
    """List the steps of all jobs of a workflow."""
    return [
        s
        for j in WORKFLOWS[f"{stem}.yml"]["jobs"].values()
        for s in j["steps"]
    ]


def test_published_page_is_the_tested_one():
    """A tag alone starts it; test, then build without executing, deploy."""
    assert triggers("publish.yml") == {"push": {"tags": ["v*"]}}
    runs = [step.get("run") for step in steps("publish.yml:build")]
    order = [runs.index("make test"), runs.index("make page")]
    assert order == sorted(order)
    assert runs[order[0] + 1] == "git diff --exit-code"
    assert JOBS["publish.yml:deploy"]["needs"] == "build"
    environment = JOBS["publish.yml:deploy"]["environment"]
    assert environment["name"] == "github-pages"


def test_publishing_checks_where_it_publishes(monkeypatch):
    """A fork that kept our address would send its readers to ours."""
    import address

    (line,) = re.findall(r"tools/address\.py (.+)", scripts("publish.yml"))
    monkeypatch.setenv("GITHUB_REPOSITORY", address.read()[0])
    assert address.main(line.split()) == 0
    monkeypatch.setenv("GITHUB_REPOSITORY", "somebody/else")
    assert address.main(line.split()) == 1


def test_weekly_run_is_unpinned_and_reports():
    """Newest of everything, with an issue at the end when it breaks."""
    runs = (step.get("run") for step in steps("weekly.yml:newest"))
    install = next(run for run in runs if run)
    assert "constraints" not in install
    assert "--upgrade-strategy eager" in install
    assert "schedule" in triggers("weekly.yml")
    text = scripts("weekly.yml")
    assert "gh issue create" in text and "gh issue comment" in text


def test_weekly_run_is_on_every_machine():
    """Each of ``tools/machines.py`` in one group; CI takes one beside."""
    import machines

    matrix = JOBS["weekly.yml:machines"]["strategy"]["matrix"]
    names = ",".join(matrix["machines"]).split(",")
    assert sorted(names) == sorted(m.name for m in machines.MACHINES)
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    (other,) = re.findall(
        r"tools/machines\.py --only ([\w-]+)$", ci, re.MULTILINE
    )
    assert set(other.split(",")) < set(names) - {"here"}


def test_weekly_run_is_on_the_oldest_that_the_metadata_allows():
    """The versions in the command are the lower bounds of pyproject.toml."""
    bounds = dict(
        need.split(">=") for need in PROJECT["project"]["dependencies"]
    )
    (command,) = [
        step["run"]
        for step in steps("weekly.yml:oldest")
        if "pip install" in step.get("run", "")
    ]
    pinned = dict(re.findall(r'"([\w-]+)==([\d.]+)\.\*"', command))
    assert set(pinned) == {"torch", "transformers", "numpy", "matplotlib"}
    for name, version in pinned.items():
        assert bounds[name] == version, name


def test_weekly_report_waits_for_all():
    """A failure of any job is in the issue."""
    jobs = set(WORKFLOWS["weekly.yml"]["jobs"]) - {"report"}
    report = JOBS["weekly.yml:report"]
    assert set(report["needs"]) == jobs
    told = {str(value) for value in report["env"].values()}
    assert {f"${{{{ needs.{job}.result }}}}" for job in jobs} <= told


# Commands


def test_make_targets_exist():
    """Each ``make x`` of a workflow or of CONTRIBUTING is in the Makefile."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"(?m)^([a-z]+):", makefile))
    texts = [scripts(name) for name in WORKFLOWS]
    texts.append((ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    used = set(re.findall(r"(?m)(?:^|`)make ([a-z]+)", "\n".join(texts)))
    assert {"test", "book", "page", "refresh"} <= used
    assert used <= targets


def test_page_target_executes_nothing():
    """``make page`` is the book with execution switched off."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    recipe = re.search(r"(?m)^page:.*\n((?:\t.*\n)+)", makefile)[1]
    assert 'execute_notebooks: "off"' in recipe
    config = (ROOT / "_config.yml").read_text("utf-8")
    assert len(re.findall(r"(?m)^  execute_notebooks: ", config)) == 1


@pytest.mark.parametrize("name", WORKFLOWS)
def test_files_and_extras_named_in_commands_exist(name):
    """Scripts, constraints and extras are those of the repository."""
    text = scripts(name)
    extras = set(PROJECT["project"]["optional-dependencies"])
    for group in re.findall(r"\.\[([a-z][\w,]*)\]", text):
        assert set(group.split(",")) <= extras
    pattern = r"(?<![\w/])(?:tools|\.ci)/[\w./]*\w|constraints\.txt"
    for path in re.findall(pattern, text):
        assert (ROOT / path).is_file(), path


def test_readme_lines_are_what_the_matrix_runs():
    """Windows and plain-pip readers: the README's lines, on each system."""
    readme = (ROOT / "README.md").read_text("utf-8").splitlines()
    runs = [s.get("run", "").strip() for s in steps("tests.yml:matrix")]
    for line in (
        'pip install -c constraints.txt -e ".[book,test]"',
        "pytest --nbval",
        "jupyter-book build . -W -n --keep-going",
    ):
        assert line in runs
        assert line in readme
