"""The linter of JavaScript and CSS: pinned, and missed where it is absent."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = json.loads((ROOT / "package.json").read_text("utf-8"))
LOCK = json.loads((ROOT / "package-lock.json").read_text("utf-8"))
BIOME = "@biomejs/biome"
FOLDERS = ("dblm_lib", "_static")


def test_one_tool_in_one_version():
    """Exact in package.json, the same in the lock, for every system."""
    assert set(PACKAGE["devDependencies"]) == {BIOME}
    version = PACKAGE["devDependencies"][BIOME]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    packages = {k: v for k, v in LOCK["packages"].items() if k}
    assert {package["version"] for package in packages.values()} == {version}
    assert all(p["integrity"].startswith("sha512-") for p in packages.values())
    systems = {s for p in packages.values() for s in p.get("os", [])}
    assert systems >= {"linux", "darwin", "win32"}


def test_the_lock_names_no_registry():
    """Each machine asks its own; the digests say what may come."""
    assert all("resolved" not in p for p in LOCK["packages"].values())
    settings = (ROOT / ".npmrc").read_text("utf-8").split()
    assert settings == ["omit-lockfile-registry-resolved=true"]


def dry_run(*settings):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(
        ["make", "-n", "lint", *settings],
        cwd=ROOT,
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    return done.stdout


def test_without_npm_the_rest_is_checked_and_a_notice_given():
    """Python's style does not depend on Node.js."""
    said = dry_run("NPM=")
    assert "ruff format --check" in said
    assert "NOT CHECKED: scripts and styles" in said
    assert "biome ci" not in said
    assert "npm ci" not in said
    said = dry_run("NPM=npm")
    assert f"biome ci --error-on-warnings {' '.join(FOLDERS)}\n" in said
    assert "NOT CHECKED" not in said


def biome(folder=ROOT):
    """Check a folder as `make lint` does."""
    name = "biome.cmd" if os.name == "nt" else "biome"
    command = ROOT / "node_modules" / ".bin" / name
    if not command.exists():
        pytest.skip("Biome is not installed (make lint, where npm is)")
    done = subprocess.run(
        [command, "ci", "--error-on-warnings", "--colors=off", *FOLDERS],
        cwd=folder,
        check=False,
        capture_output=True,
        encoding="utf-8",
    )
    return done.returncode, done.stdout + done.stderr


def test_our_scripts_and_styles_are_clean():
    """Each of them is read."""
    ours = [
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".js", ".css")
    ]
    status, said = biome()
    assert status == 0, said
    assert f"Checked {len(ours)} files" in said


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("a.js", "if (window.x == 2) window.y();\n", "noDoubleEquals"),
        ("a.js", "window.f(1,2)\n", "format"),
        ("a.css", "p {\n  colr: red;\n}\n", "noUnknownProperty"),
        ("a.css", "p{top:0}\n", "format"),
    ],
)
def test_a_fault_is_found(tmp_path, name, text, fault):
    """In a file where ours are."""
    shutil.copy(ROOT / "biome.jsonc", tmp_path)
    folder = tmp_path / "dblm_lib" / "widgets"
    folder.mkdir(parents=True)
    (tmp_path / "_static").mkdir()
    (folder / name).write_text(text, "utf-8")
    status, said = biome(tmp_path)
    assert status != 0
    assert fault in said
