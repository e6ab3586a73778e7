"""The house rules hold, and what breaks them is caught."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint_imports(package: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    return subprocess.run(
        [*command, "--config", str(ROOT / ".importlinter")],
        cwd=package.parent,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("place", "line", "contract"),
    [
        ("kit/clock.py", "from aiserver.doors import headers", "Every import goes down"),
        ("keys/access.py", "from aiserver.providers import pool", "Every import goes down"),
        ("settlement.py", "from aiserver import dispatch", "Every import goes down"),
        ("settlement.py", "import sqlite3", "libraries live in the kit"),
        ("dispatch.py", "from aiserver.chat import handlers", "never a feature"),
        ("work/twins.py", "from aiserver.transforms import images", "never a feature"),
        ("chat/handlers.py", "import starlette.requests", "HTTP servers live in the doors"),
        ("rooms.py", "import starlette.requests", "HTTP servers live in the doors"),
        ("engines.py", "import sqlite3", "libraries live in the kit"),
        ("changes.py", "from aiserver import data", "Every import goes down"),
        ("readings.py", "import rich", "Terminal libraries live in the command line"),
        ("kit/clock.py", "import pyvips", "Libraries for pictures live in kit/imaging"),
        (
            "kit/imaging/pool.py",
            "from aiserver.kit.imaging import writing",
            "Pictures are decoded in limited children",
        ),
        ("newroom.py", "", "Every import goes down"),
    ],
)
def test_import_that_goes_up_is_caught(
    tmp_path: Path, place: str, line: str, contract: str
) -> None:
    package = tmp_path / "aiserver"
    shutil.copytree(
        ROOT / "src" / "aiserver", package, ignore=shutil.ignore_patterns("__pycache__")
    )
    assert lint_imports(package).returncode == 0
    with (package / place).open("a") as file:
        file.write(f"\n{line}\n")
    done = lint_imports(package)
    assert done.returncode != 0
    assert contract in done.stdout.partition("Broken contracts")[2] + done.stdout


def test_rooms_say_what_they_are() -> None:
    for init in (ROOT / "src" / "aiserver").rglob("__init__.py"):
        text = init.read_text(encoding="utf-8").strip()
        assert text.startswith('"""'), init


def test_files_stay_readable() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / "src").rglob("*.py")
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert long == {}
