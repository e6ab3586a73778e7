"""The catalogue over HTTP: what is listed, what is in use, what an operator lays over it."""

import json
from pathlib import Path
from typing import Any

import pytest

from fakes.upstream import FakeUpstream
from gateway import Reply, TestGateway, running


async def rows(gateway: TestGateway, call: str) -> list[Any]:
    reply = await gateway.call("GET", f"/api/{call}", key=None)
    assert reply.status == 200, reply.body
    return reply.json()["results"]


async def reload(gateway: TestGateway) -> Reply:
    reply = await gateway.call("POST", "/api/Reload", {})
    assert reply.status == 200, reply.body
    return reply


def override(gateway: TestGateway, name: str, content: Any) -> None:
    folder = gateway.data / "overrides"
    folder.mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / name).write_text(text, encoding="utf-8")


async def test_models_are_queried(gateway: TestGateway) -> None:
    reply = await gateway.call("GET", "/api/QueryAiModels?include=total&take=2", key=None)
    assert reply.json()["total"] >= 300
    assert len(reply.json()["results"]) == 2
    [row] = await rows(gateway, "QueryAiModels?id=llama3.3")
    description = row.pop("description")
    assert description.endswith(".")
    assert row == {
        "id": "llama3.3",
        "tags": ["70b"],
        "latest": "70b",
        "website": "https://ollama.com/library/llama3.3",
        "icon": "/icons/models/llama3.3",
    }
    [row] = await rows(gateway, "QueryAiModels?id=gpt-4o&fields=id,tags,vision")
    assert row == {"id": "gpt-4o", "tags": [], "vision": True}


async def test_types_of_provider_are_those_one_can_create(gateway: TestGateway) -> None:
    ids = {row["id"] for row in await rows(gateway, "QueryAiTypes")}
    assert {"Open AI", "OpenRouter", "Ollama", "Custom"} <= ids
    assert "Local" not in ids


async def test_media_types_and_models_are_queried(gateway: TestGateway) -> None:
    types = await rows(gateway, "QueryMediaTypes?orderBy=id")
    assert [(row["id"], row["provider"]) for row in types] == [
        ("ComfyUI", "Comfy"),
        ("OpenAI", "OpenAi"),
        ("Replicate", "Replicate"),
    ]
    everything = await rows(gateway, "QueryMediaModels")
    assert all(row["apiModels"] for row in everything)
    of_openai = await rows(gateway, "QueryMediaModels?providerId=OpenAI")
    assert {"dall-e-3", "tts-alloy"} <= {row["id"] for row in of_openai}
    assert len(of_openai) < len(everything)
    assert await rows(gateway, "QueryMediaModels?providerId=Nobody") == []


async def test_media_model_is_found_by_id(gateway: TestGateway) -> None:
    [row] = await rows(gateway, "QueryMediaModels?id=flux-schnell")
    assert row["apiModels"] == {"Replicate": "black-forest-labs/flux-schnell"}
    [part] = await rows(gateway, "QueryMediaModels?id=ae.safetensors")
    assert part["type"] == "VAE"
    assert await rows(gateway, "QueryMediaModels?id=nobody") == []


async def test_prompts_and_voices_are_queried(gateway: TestGateway) -> None:
    [prompt] = await rows(gateway, "QueryPrompts?id=proofreader")
    assert prompt["name"] == "Proofreader"
    voices = await rows(gateway, "QueryTextToSpeechVoices")
    assert {"id": "Alloy", "model": "tts-alloy"} in voices
    assert len(voices) == 8


async def test_active_models_are_those_served_now(gateway: TestGateway) -> None:
    models = [{"model": "gpt-4o"}, {"model": "llama3.3:70b"}, {"model": "Team-Model"}]
    await gateway.provider("on", "https://host", models=models)
    await gateway.provider("off", "https://host", models=[{"model": "o3"}], enabled=False)
    assert await rows(gateway, "ActiveAiModels") == ["gpt-4o", "llama3.3:70b", "Team-Model"]
    assert await rows(gateway, "ActiveAiModels?vision=true") == ["gpt-4o"]
    custom = "ActiveAiModels?provider=CustomOpenAiProvider"
    assert len(await rows(gateway, custom)) == 3
    assert await rows(gateway, "ActiveAiModels?provider=OllamaAiProvider") == []
    assert await rows(gateway, "ActiveCustomAiModels") == ["Team-Model"]


async def test_no_media_model_is_active_without_a_provider(gateway: TestGateway) -> None:
    reply = await gateway.call("GET", "/api/ActiveMediaModels", key=None)
    assert reply.json() == {"results": []}


@pytest.mark.parametrize("path", ["/icons/models/gpt-4o", "/api/GetModelImage?model=gpt-4o"])
async def test_icon_is_a_harmless_svg(gateway: TestGateway, path: str) -> None:
    reply = await gateway.call("GET", path, key=None)
    assert reply.status == 200
    assert reply.headers["content-type"] == "image/svg+xml"
    assert reply.headers["x-content-type-options"] == "nosniff"
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    assert reply.headers["content-security-policy"] == policy
    assert reply.body.startswith(b"<svg ")


async def test_unknown_model_has_an_icon_too(gateway: TestGateway) -> None:
    plain = await gateway.call("GET", "/api/GetModelImage", key=None)
    script = await gateway.call("GET", "/icons/models/%3Cscript%3E", key=None)
    assert plain.status == script.status == 200
    assert plain.body == script.body


async def test_override_replaces_and_adds_after_reload(gateway: TestGateway) -> None:
    override(gateway, "ai-models.json", [{"id": "mine"}, {"id": "gpt-4o", "description": "Ours."}])
    assert await rows(gateway, "QueryAiModels?id=mine") == []
    assert (await reload(gateway)).json() == {}
    everything = await rows(gateway, "QueryAiModels")
    assert everything[0] == {"id": "mine", "tags": [], "icon": "/icons/models/mine"}
    [row] = [row for row in everything if row["id"] == "gpt-4o"]
    assert row["description"] == "Ours."


async def test_broken_override_is_named_and_stops_nothing(gateway: TestGateway) -> None:
    override(gateway, "prompts.json", "[{")
    override(gateway, "tts-voices.json", [{"id": "Mine", "model": "lessac"}])
    status = (await reload(gateway)).json()["responseStatus"]
    assert status["errorCode"] == ""
    assert list(status["meta"]) == ["prompts.json"]
    assert str(gateway.data) not in json.dumps(status)
    assert len(await rows(gateway, "QueryPrompts")) >= 40
    assert len(await rows(gateway, "QueryTextToSpeechVoices")) == 9


async def test_server_starts_with_a_broken_override(tmp_path: Path, migrated: bytes) -> None:
    folder = tmp_path / "data" / "overrides"
    folder.mkdir(parents=True)
    (folder / "ai-models.json").write_text("no json")
    async with running(tmp_path / "data", migrated) as gateway:
        assert len(await rows(gateway, "QueryAiModels")) >= 300


async def test_private_catalogue_asks_for_a_key(tmp_path: Path, migrated: bytes) -> None:
    async with running(tmp_path / "data", migrated, PUBLIC_CATALOGUE="false") as gateway:
        paths = ("/api/QueryAiModels", "/api/ActiveAiModels", "/icons/models/x")
        restricted = await gateway.key(restrictTo=["Hello"])
        for path in paths:
            assert (await gateway.call("GET", path, key=None)).status == 401
            assert (await gateway.call("GET", path, key=restricted)).status == 403
            assert (await gateway.call("GET", path, key=await gateway.key())).status == 200
        assert (await gateway.call("GET", "/api/Hello", key=None)).status == 200


@pytest.mark.parametrize("name", ["llama3.3", "llama3.3:latest", "llama3.3:70b"])
async def test_chat_takes_every_name_of_a_model(
    gateway: TestGateway, upstream: FakeUpstream, name: str
) -> None:
    models = [{"model": "llama3.3:70b", "apiModel": "upstream-llama"}]
    await gateway.provider("fake", upstream.base_url, models=models)
    assert (await gateway.chat(name)).status == 200
    assert upstream.requests[-1].json()["model"] == "upstream-llama"


async def test_exact_name_wins_over_what_it_stands_for(
    gateway: TestGateway, upstream: FakeUpstream
) -> None:
    await gateway.provider("low", upstream.base_url, models=[{"model": "llama3.3"}])
    models = [{"model": "llama3.3:70b"}]
    await gateway.provider("high", upstream.base_url, models=models, priority=9)
    assert (await gateway.chat("llama3.3")).status == 200
    assert upstream.requests[-1].json()["model"] == "llama3.3"


async def test_unserved_name_is_quoted_as_asked(gateway: TestGateway) -> None:
    reply = await gateway.chat("llama3.3:latest")
    assert reply.status == 404
    assert "Model llama3.3:latest not found" in reply.json()["error"]["message"]
