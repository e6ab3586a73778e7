"""The embedded model through the gateway: absent, pulled later, killed; with a real llama.cpp."""

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from aiserver.providers.local import embedded
from aiserver.providers.local.weights import WEIGHTS, Weight
from fakes.gguf import write_tiny_gguf
from gateway import TestGateway, running


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
async def embedding(
    tmp_path: Path, migrated: bytes, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncGenerator[TestGateway]:
    """A gateway whose embedded model is tiny and not there yet."""
    content = tiny.read_bytes()
    weight = Weight(
        id=WEIGHTS[0].id,
        file="tiny.gguf",
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        licence="Apache-2.0",
        description="Random weights.",
        sources=(),
    )
    monkeypatch.setattr(embedded, "WEIGHTS", (weight,))
    monkeypatch.setattr(embedded, "RECHECK_SECONDS", 0.05)
    async with running(tmp_path / "data", migrated, LOCAL_MODELS="true") as opened:
        yield opened


async def local_state(gateway: TestGateway) -> Any:
    return (await gateway.call("GET", "/health/ready", key=None)).json()["local"]


async def ready(gateway: TestGateway) -> None:
    async with asyncio.timeout(20):
        while (await local_state(gateway))["state"] != "ready":
            await asyncio.sleep(0.05)


def put(gateway: TestGateway, tiny: Path) -> None:
    """As a pull by another process does it: whole or not at all."""
    folder = gateway.data / "models"
    folder.mkdir(exist_ok=True)
    tiny.replace(folder / "tiny.gguf")


async def absent(gateway: TestGateway) -> None:
    async with asyncio.timeout(5):
        while (await local_state(gateway))["state"] != "absent":
            await asyncio.sleep(0.01)


async def test_absent_model_leaves_a_working_server(embedding: TestGateway) -> None:
    await absent(embedding)
    reply = await embedding.chat("local")
    assert reply.status == 503
    assert "ai-server models pull" in reply.problem()["message"]
    assert reply.json()["error"]["code"] == "local_model_unavailable"
    assert "models pull" in (await local_state(embedding))["reason"]
    ready_reply = await embedding.call("GET", "/health/ready", key=None)
    assert ready_reply.status == 200
    assert str(embedding.data).encode() not in ready_reply.body + reply.body
    assert (await embedding.call("GET", "/v1/models")).json()["data"] == []
    assert (await embedding.call("GET", "/api/GetActiveProviders")).json()["results"] == []


async def test_model_pulled_later_answers_without_a_restart(
    embedding: TestGateway, tiny: Path
) -> None:
    await absent(embedding)
    put(embedding, tiny)
    await ready(embedding)
    for model in ("local", "smollm2:135m"):
        reply = await embedding.chat(model, max_tokens=5)
        assert reply.status == 200
        assert reply.json()["usage"]["completion_tokens"] > 0
    assert (await embedding.chat("local", max_tokens=5, stream=True)).events()[-1] == "[DONE]"
    listed = (await embedding.call("GET", "/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["local", "smollm2:135m"]


async def test_killed_engine_comes_back(embedding: TestGateway, tiny: Path) -> None:
    put(embedding, tiny)
    await ready(embedding)
    engine = embedding.app._embedded.engine
    assert engine is not None
    child = engine._child.pid
    assert child is not None
    os.kill(child, signal.SIGKILL)
    async with asyncio.timeout(20):
        while engine._child.pid in (child, None):
            await asyncio.sleep(0.02)
    assert (await embedding.chat("local", max_tokens=5)).status == 200


async def test_engine_can_be_switched_off(gateway: TestGateway) -> None:
    assert await local_state(gateway) == {"state": "off"}
    assert (await gateway.chat("local")).status == 404
