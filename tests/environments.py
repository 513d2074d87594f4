"""A wheel of this checkout, and new environments to install it in.

No network, and seconds instead of minutes: the wheel is built without an
environment of its own, and a new environment sees the packages of this one
through a path file. Python does not read the path files *inside* a folder
that was added in this way, so that an editable install of the library does
not come along: the library is there only if the wheel is installed.
"""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HIDDEN = ("PYTHONPATH", "PYTHONHOME", "JUPYTER_PATH", "DBLM_DATA")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def run(command, cwd, check=True):
    """Run a command as a new user would, without our paths; return it."""
    env = {k: v for k, v in os.environ.items() if k not in HIDDEN}
    env.update(PIP_NO_INDEX="1", PIP_NO_INPUT="1", PYTHONUTF8="1")
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        check=False,
        env=env,
        capture_output=True,
        encoding="utf-8",
    )
    if check and done.returncode:
        raise AssertionError(f"{command}\n{done.stdout}\n{done.stderr}")
    return done


def project_files(*folders):
    """List what git knows, or would add, below ``folders`` of the root."""
    listing = run(
        ["git", "ls-files", "-z", "--cached", "--others"]
        + ["--exclude-standard", "--", *folders],
        ROOT,
        check=False,
    )
    if listing.returncode:  # an unpacked archive: all there is
        found = [
            p for f in folders for p in [ROOT / f, *(ROOT / f).rglob("*")]
        ]
        names = [p.relative_to(ROOT).as_posix() for p in found]
    else:
        names = listing.stdout.split("\0")
    seen = sorted({name for name in names if (ROOT / name).is_file()})
    return [name for name in seen if "__pycache__" not in name]


@functools.cache
def wheel():
    """Build a wheel of the checkout, once a test run; return its path."""
    folder = Path(tempfile.mkdtemp(prefix="dblm-wheel-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = folder / "source"  # a build leaves files beside its source
    top = ["pyproject.toml", "MANIFEST.in", "README.md", "CITATION.cff"]
    licences = [path.name for path in ROOT.glob("LICENSE*")]
    for name in project_files("dblm_lib", "data", *top, *licences):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation"]
    run([*PIP, *build, "--wheel-dir", folder, source], folder)
    (built,) = folder.glob("dblm-*.whl")
    return built


class Environment:
    """A new virtual environment that borrows the packages of this one.

    Parameters
    ----------
    folder : pathlib.Path
        Where to make it.
    borrow : bool
        Whether this environment's packages can be imported in it.
    """

    def __init__(self, folder, borrow=True):
        venv.create(folder, with_pip=False)
        base = {"base": str(folder), "platbase": str(folder)}
        paths = sysconfig.get_paths("venv", vars=base)
        name = "python.exe" if os.name == "nt" else "python"
        self.python = Path(paths["scripts"]) / name
        self.packages = Path(paths["purelib"])
        if borrow:
            ours = ("site-packages", "dist-packages")
            lines = [p for p in sys.path if Path(p).name in ours]
            text = "\n".join(lines) + "\n"
            (self.packages / "borrowed.pth").write_text(text, "utf-8")

    def install(self, path):
        """Install the wheel at ``path`` and nothing else."""
        target = ["--python", self.python, "install", "-q", "--no-deps"]
        # The borrowed packages hold an older us, perhaps: never mind it.
        run([*PIP, *target, "--ignore-installed", path], self.packages)
