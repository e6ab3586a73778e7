"""A limited child is held to its bounds by the system."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aiserver.kit.limits import ProcessLimits, limited


def ended(code: str, limits: ProcessLimits, folder: Path) -> subprocess.CompletedProcess[str]:
    command = limited((sys.executable, "-I", "-S", "-c", code), limits)
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, check=False, timeout=30
    )


@pytest.mark.parametrize(
    ("limits", "code", "message"),
    [
        (ProcessLimits(memory=256 << 20), "bytearray(512 << 20)", "MemoryError"),
        (ProcessLimits(open_files=16), "[open('/dev/null') for _ in range(16)]", "Too many open"),
        (
            ProcessLimits(file_size=10),
            "[open('f', 'ab', 0).write(b'x' * 9) for _ in range(3)]",
            "File too large",
        ),
    ],
)
def test_child_over_a_bound_is_refused_more(
    tmp_path: Path, limits: ProcessLimits, code: str, message: str
) -> None:
    done = ended(f"x = {code}", limits, tmp_path)
    assert done.returncode == 1
    assert message in done.stderr


def test_child_at_a_bound_is_left_alone(tmp_path: Path) -> None:
    done = ended("open('f', 'wb').write(b'x' * 10)", ProcessLimits(file_size=10), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_processor_time_ends_a_child(tmp_path: Path) -> None:
    done = ended("while True: pass", ProcessLimits(cpu_seconds=1), tmp_path)
    assert done.returncode == -signal.SIGKILL


def test_signals_are_as_a_program_expects_them(tmp_path: Path) -> None:
    command = limited(("/bin/sh", "-c", "head -c 20 /dev/zero > f"), ProcessLimits(file_size=10))
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode in (-signal.SIGXFSZ, 128 + signal.SIGXFSZ)


def test_child_of_another_parent_does_not_begin(tmp_path: Path) -> None:
    launch = list(limited(("/bin/echo", "began"), ProcessLimits()))
    launch[4] = "1"
    done = subprocess.run(launch, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "has ended" in done.stderr
    assert done.stdout == ""
