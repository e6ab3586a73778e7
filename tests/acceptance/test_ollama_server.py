"""A real server of Ollama's protocol before a real llama.cpp: through the gateway as directly."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Generator
from typing import Any

import ollama
import openai
import pytest
from openai import AsyncOpenAI

from aiserver.providers.local.engine import CHILD_ENVIRONMENT
from fakes.llama import MOOD, PATIENCE, Llama, running_llama
from gateway import TestGateway

MODEL = "tiny/tiny"
LOCKED = "locked/tiny"
ASKING: list[Any] = [{"role": "user", "content": "How is the weather in Paris?"}]
AS_MOOD: Any = {
    "type": "json_schema",
    "json_schema": {"name": "mood", "strict": True, "schema": MOOD},
}
COLD = {"temperature": 0, "num_predict": 500}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Generator[Llama]:
    with running_llama(tmp_path_factory.mktemp("llama"), slots=1) as served:
        yield served


@pytest.fixture(scope="module")
def server(llama: Llama, tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """The server's address; `tiny` is the llama.cpp, `locked` the same with a wrong key."""
    folder = tmp_path_factory.mktemp("ollama")
    environment = {name: os.environ[name] for name in CHILD_ENVIRONMENT if name in os.environ}
    environment |= {
        "PROVIDERS_TINY_BASE_URL": f"{llama.url}/v1",
        "PROVIDERS_TINY_API_KEY": llama.key,
        "PROVIDERS_LOCKED_BASE_URL": f"{llama.url}/v1",
        "PROVIDERS_LOCKED_API_KEY": "wrong",
        "EXTRA_MODELS": f"{MODEL},{LOCKED}",
    }
    with socket.create_server(("127.0.0.1", 0)) as listener, (folder / "log").open("wb") as log:
        # It listens already: who calls before the child is up waits for it.
        argv = [sys.executable, "-m", "uvicorn", "ollama_proxy.server:app"]
        argv += ["--fd", str(listener.fileno())]
        fds = (listener.fileno(),)
        with subprocess.Popen(
            argv, stderr=log, stdout=log, pass_fds=fds, env=environment, cwd=folder
        ) as child:
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                child.kill()


@pytest.fixture
async def direct(server: str) -> AsyncGenerator[ollama.AsyncClient]:
    async with ollama.AsyncClient(host=server, timeout=PATIENCE) as client:
        yield client


@pytest.fixture
async def through(gateway: TestGateway, server: str) -> AsyncGenerator[AsyncOpenAI]:
    """OpenAI's SDK on a gateway whose provider is the server."""
    models = [{"model": MODEL}, {"model": LOCKED}]
    await gateway.provider("ollama", server, aiTypeId="Ollama", models=models)
    async with AsyncOpenAI(
        base_url=f"{gateway.url}/v1",
        api_key=await gateway.key(),
        max_retries=0,
        timeout=PATIENCE,
    ) as client:
        yield client


@pytest.fixture
async def generating(
    gateway: TestGateway, through: AsyncOpenAI
) -> AsyncGenerator[ollama.AsyncClient]:
    """Ollama's own client on the same gateway."""
    headers = {"Authorization": f"Bearer {through.api_key}"}
    async with ollama.AsyncClient(host=gateway.url, headers=headers, timeout=PATIENCE) as client:
        yield client


def is_mood(text: str) -> bool:
    return sorted(json.loads(text)) == ["mood", "sure"]


async def test_same_models_are_listed(
    gateway: TestGateway, server: str, direct: ollama.AsyncClient
) -> None:
    theirs = [model.model for model in (await direct.list()).models]
    reply = await gateway.call("GET", f"/api/GetOllamaModels?apiBaseUrl={server}")
    assert [model["model"] for model in reply.json()["results"]] == theirs
    assert MODEL in theirs


async def test_same_words_are_answered(through: AsyncOpenAI, direct: ollama.AsyncClient) -> None:
    theirs = await direct.chat(
        MODEL, ASKING, options={"temperature": 0, "seed": 7, "num_predict": 24}
    )
    ours = await through.chat.completions.create(
        model=MODEL, messages=ASKING, temperature=0, seed=7, max_tokens=24
    )
    assert theirs.message.content
    assert ours.choices[0].message.content == theirs.message.content
    assert ours.choices[0].finish_reason == theirs.done_reason
    assert ours.usage is not None
    assert ours.usage.prompt_tokens == theirs.prompt_eval_count
    assert ours.usage.completion_tokens == theirs.eval_count


async def test_same_words_are_streamed(through: AsyncOpenAI, direct: ollama.AsyncClient) -> None:
    stream = await direct.chat(MODEL, ASKING, stream=True, format=MOOD, options=COLD)
    parts = [part async for part in stream]
    chunks = [
        chunk
        async for chunk in await through.chat.completions.create(
            model=MODEL,
            messages=ASKING,
            stream=True,
            temperature=0,
            max_tokens=500,
            response_format=AS_MOOD,
            stream_options={"include_usage": True},
        )
    ]
    *words, finish, usage = chunks
    assert len(parts) > 5
    assert [chunk.choices[0].delta.content for chunk in words] == [
        part.message.content for part in parts[:-1]
    ]
    assert is_mood("".join(part.message.content or "" for part in parts))
    assert finish.choices[0].finish_reason == parts[-1].done_reason
    assert usage.usage is not None
    assert usage.usage.completion_tokens == parts[-1].eval_count


async def test_same_prompt_is_generated(
    generating: ollama.AsyncClient, direct: ollama.AsyncClient
) -> None:
    theirs = await direct.generate(MODEL, "The weather is", format=MOOD, options=COLD)
    ours = await generating.generate(MODEL, "The weather is", format=MOOD, options=COLD)
    stream = await generating.generate(
        MODEL, "The weather is", format=MOOD, options=COLD, stream=True
    )
    parts = [part async for part in stream]
    assert is_mood(theirs.response or "")
    assert (ours.response, ours.eval_count) == (theirs.response, theirs.eval_count)
    assert "".join(part.response or "" for part in parts) == theirs.response
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


async def test_prompt_is_translated_for_others(
    gateway: TestGateway, llama: Llama, generating: ollama.AsyncClient, direct: ollama.AsyncClient
) -> None:
    """The same llama.cpp, asked in OpenAI's form."""
    models = [{"model": "plain", "apiModel": "tiny"}]
    await gateway.provider("llama", llama.url, apiKey=llama.key, models=models)
    theirs = await direct.generate(MODEL, "The weather is", format=MOOD, options=COLD)
    ours = await generating.generate("plain", "The weather is", format=MOOD, options=COLD)
    stream = await generating.generate(
        "plain", "The weather is", format=MOOD, options=COLD, stream=True
    )
    parts = [part async for part in stream]
    assert ours.response == theirs.response
    assert "".join(part.response or "" for part in parts) == theirs.response
    for last in (ours, parts[-1]):
        assert (last.done, last.done_reason) == (True, "stop")
        # The server in front counts words, llama.cpp itself tokens.
        assert (last.eval_count or 0) > (theirs.eval_count or 0)
        assert (last.prompt_eval_count or 0) > 0
        assert (last.total_duration or 0) > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_failure_behind_it_is_an_error(through: AsyncOpenAI, stream: bool) -> None:
    with pytest.raises(openai.InternalServerError) as raised:
        await through.chat.completions.create(model=LOCKED, messages=ASKING, stream=stream)
    assert "ollama" in raised.value.message
