import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from aiserver.kit.process import Backoff
from aiserver.providers.local.engine import (
    Capacity,
    Endpoint,
    EngineState,
    EngineUnavailable,
    LocalEngine,
    native_package_installed,
)
from aiserver.providers.local.weights import Weight, WeightStore
from fakes.gguf import write_tiny_gguf

pytestmark = pytest.mark.skipif(
    not native_package_installed(), reason="the extra `local` is not installed"
)

QUICK = Backoff(first=0.001, cap=0.002, give_up_after=2)
PATIENCE = 30.0

Started = Callable[..., LocalEngine]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


def a_weight(content: bytes) -> Weight:
    return Weight(
        id="tiny:1",
        file="tiny.gguf",
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        licence="Apache-2.0",
        description="random",
        sources=(),
    )


@pytest.fixture
async def engine_for(tmp_path: Path) -> AsyncIterator[Started]:
    """Makes engines over one folder, and stops them."""
    engines: list[LocalEngine] = []

    def make(content: bytes, *, present: bool = True, **options: Any) -> LocalEngine:
        if present:
            (tmp_path / "tiny.gguf").write_bytes(content)
        settings: dict[str, Any] = {
            "on_line": print,
            "backoff": QUICK,
            "capacity": Capacity(context=2048, threads=1),
        }
        store = WeightStore(tmp_path, None)
        engine = LocalEngine(store, a_weight(content), **(settings | options))
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        await engine.stop()


async def ask(endpoint: Endpoint, *, key: str | None = None, **body: Any) -> tuple[int, str]:
    request = urllib.request.Request(
        f"{endpoint.url}/v1/chat/completions",
        data=json.dumps({"messages": [{"role": "user", "content": "hi"}], **body}).encode(),
        headers={"Authorization": f"Bearer {endpoint.api_key if key is None else key}"},
    )

    def exchange() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(exchange)


async def leaves(engine: LocalEngine, state: EngineState) -> None:
    async with asyncio.timeout(PATIENCE):
        while engine.status.state is state:
            await engine._changed.wait()


def test_tiny_model_is_always_the_same(tiny: bytes, tmp_path: Path) -> None:
    assert write_tiny_gguf(tmp_path / "again.gguf").read_bytes() == tiny
    assert len(tiny) < 600_000


async def test_ready_engine_answers_a_chat(engine_for: Started, tiny: bytes) -> None:
    engine = engine_for(tiny)
    await engine.start()
    assert engine.status.state is EngineState.STARTING
    endpoint = await engine.ready(PATIENCE)
    status, body = await ask(endpoint, max_tokens=5)
    assert status == 200
    answer = json.loads(body)
    assert answer["model"] == "tiny:1"
    assert answer["usage"]["completion_tokens"] <= 5
    assert engine.status.state is EngineState.READY
    assert engine.status.url == endpoint.url
    assert endpoint.url.startswith("http://127.0.0.1:")


async def test_answers_stream_with_usage(engine_for: Started, tiny: bytes) -> None:
    engine = engine_for(tiny)
    await engine.start()
    endpoint = await engine.ready(PATIENCE)
    _, body = await ask(endpoint, max_tokens=5, stream=True, stream_options={"include_usage": True})
    events = [line.removeprefix("data: ") for line in body.splitlines() if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["usage"]["completion_tokens"] >= 1


async def test_json_schema_binds_the_answer(engine_for: Started, tiny: bytes) -> None:
    engine = engine_for(tiny)
    await engine.start()
    endpoint = await engine.ready(PATIENCE)
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}},
        "required": ["yes"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    _, body = await ask(endpoint, max_tokens=200, response_format=form)
    content = json.loads(json.loads(body)["choices"][0]["message"]["content"])
    assert isinstance(content["yes"], bool)


async def test_key_is_needed_and_never_shown(engine_for: Started, tiny: bytes) -> None:
    engine = engine_for(tiny)
    await engine.start()
    endpoint = await engine.ready(PATIENCE)
    status, _ = await ask(endpoint, key="guess")
    assert status == 401
    assert endpoint.api_key not in repr(endpoint)
    assert endpoint.api_key not in repr(engine.status)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_child_is_told_no_secrets(
    engine_for: Started, tiny: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret-of-the-gateway")
    engine = engine_for(tiny)
    await engine.start()
    endpoint = await engine.ready(PATIENCE)
    process = Path("/proc") / str(engine._child.pid)
    visible = (process / "cmdline").read_text() + (process / "environ").read_text()
    assert endpoint.api_key not in visible
    assert "a-secret-of-the-gateway" not in visible


async def test_killed_child_is_replaced(engine_for: Started, tiny: bytes) -> None:
    engine = engine_for(tiny)
    await engine.start()
    before = await engine.ready(PATIENCE)
    assert engine._child.pid is not None
    os.kill(engine._child.pid, signal.SIGKILL)
    await leaves(engine, EngineState.READY)
    assert engine.status.url is None
    after = await engine.ready(PATIENCE)
    assert after.api_key != before.api_key
    status, _ = await ask(after, max_tokens=2)
    assert status == 200


async def test_stop_leaves_no_process(engine_for: Started, tiny: bytes) -> None:
    engine = engine_for(tiny)
    await engine.start()
    await engine.ready(PATIENCE)
    pid = engine._child.pid
    assert pid is not None
    await engine.stop()
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
    assert engine.status.state is EngineState.STOPPED
    with pytest.raises(EngineUnavailable, match="stopped"):
        await engine.ready(PATIENCE)


async def test_stopped_engine_starts_again(engine_for: Started, tiny: bytes) -> None:
    engine = engine_for(tiny)
    await engine.start()
    await engine.stop()
    await engine.start()
    await engine.ready(PATIENCE)


async def test_absent_weight_says_what_to_do(engine_for: Started, tiny: bytes) -> None:
    engine = engine_for(tiny, present=False)
    await engine.start()
    with pytest.raises(EngineUnavailable, match="ai-server models pull"):
        await engine.ready(PATIENCE)
    assert engine.status.state is EngineState.ABSENT


async def test_later_weight_is_picked_up(engine_for: Started, tiny: bytes, tmp_path: Path) -> None:
    engine = engine_for(tiny, present=False)
    await engine.start()
    await leaves(engine, EngineState.STARTING)
    await engine.recheck()
    await leaves(engine, EngineState.STARTING)
    assert engine.status.state is EngineState.ABSENT
    (tmp_path / "tiny.gguf").write_bytes(tiny)
    await engine.recheck()
    await engine.ready(PATIENCE)


async def test_garbage_file_fails_with_reason(engine_for: Started, tmp_path: Path) -> None:
    engine = engine_for(b"GGUF but not really" * 100)
    await engine.start()
    with pytest.raises(EngineUnavailable, match=r"llama\.cpp cannot serve .*tiny\.gguf"):
        await engine.ready(PATIENCE)
    await engine.recheck()
    assert engine.status.state is EngineState.FAILED
    os.utime(tmp_path / "tiny.gguf", ns=(1, 1))
    await engine.recheck()
    assert engine.status.state is EngineState.STARTING


async def test_missing_library_is_unsupported(engine_for: Started, tiny: bytes) -> None:
    engine = engine_for(tiny, installed=lambda: False)
    await engine.start()
    with pytest.raises(EngineUnavailable, match="xllamacpp is not installed"):
        await engine.ready(PATIENCE)
    assert engine.status.state is EngineState.UNSUPPORTED


async def test_slow_start_is_not_waited_out(engine_for: Started, tiny: bytes) -> None:
    silent = (sys.executable, "-c", "import sys; sys.stdin.read()")
    engine = engine_for(tiny, command=silent)
    await engine.start()
    with pytest.raises(EngineUnavailable, match=r"not up after 0\.01 seconds"):
        await engine.ready(0.01)


async def test_waiting_callers_see_the_stop(engine_for: Started, tiny: bytes) -> None:
    silent = (sys.executable, "-c", "import sys; sys.stdin.read()")
    engine = engine_for(tiny, command=silent)
    await engine.start()
    waiting = asyncio.create_task(engine.ready(PATIENCE))
    await asyncio.sleep(0)
    await engine.stop()
    with pytest.raises(EngineUnavailable):
        await waiting


def test_parent_never_loads_the_library() -> None:
    script = (
        "import sys; from aiserver.providers.local import engine;"
        "found = engine.native_package_installed();"
        "sys.exit(not found or 'xllamacpp' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
