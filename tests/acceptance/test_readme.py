"""The calls that the README shows work as they stand."""

import asyncio
import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from acceptance.running import RunningServer
from fakes.upstream import FakeUpstream

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
CALLS = [
    (language, code)
    for language, code in re.findall(r"```(python|sh)\n(.*?)```", README, re.DOTALL)
    if "local" in code and ("curl" in code or language == "python")
]


def post(server: RunningServer, path: str, body: object) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {server.secret}", "Content-Type": "application/json"}
    request = urllib.request.Request(server.base_url + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


def run(language: str, code: str, server: RunningServer, key: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c"] if language == "python" else ["sh", "-c"]
    shown = code.replace("http://localhost:5006", server.base_url)
    return subprocess.run(
        [*command, shown],
        env={**os.environ, "AI_SERVER_KEY": key},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    ).stdout


def test_three_calls_are_shown() -> None:
    assert [language for language, _ in CALLS] == ["sh", "python", "python"]


@pytest.mark.parametrize(("language", "code"), CALLS)
async def test_shown_call_is_answered(tmp_path: Path, language: str, code: str) -> None:
    async with FakeUpstream() as fake:
        server = await asyncio.to_thread(
            RunningServer.start, tmp_path / "data", {"LOCAL_MODELS": "false"}
        )
        try:
            models = [{"model": "local"}]
            provider = {"name": "fake", "aiTypeId": "Custom", "apiBaseUrl": fake.base_url}
            await asyncio.to_thread(
                post, server, "/api/CreateAiProvider", {**provider, "models": models}
            )
            made = await asyncio.to_thread(post, server, "/api/AdminCreateApiKey", {"name": "x"})
            said = await asyncio.to_thread(run, language, code, server, made["result"])
        finally:
            await asyncio.to_thread(server.stop)
    if language == "sh":
        deltas = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
        said = "".join(d["choices"][0]["delta"].get("content", "") for d in deltas)
    assert said.strip() == "echo: Hello!"
