"""The catalogue's rows, what names mean, and files that lay rows over the shipped ones."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from aiserver.providers.icons import icon_of
from aiserver.providers.models import Catalogue, ModelType

FIXTURE = Path(__file__).parents[2] / "fixtures" / "catalogue" / "original_ids.json"
ORIGINAL = json.loads(FIXTURE.read_text(encoding="utf-8"))
SHIPPED = Catalogue()


def overridden(folder: Path, name: str, content: Any) -> Catalogue:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / name).write_bytes(text)
    return Catalogue(folder)


def test_shipped_data_has_no_problem() -> None:
    assert SHIPPED.problems == {}
    assert len(SHIPPED.ai_models) >= 300
    assert len(SHIPPED.prompts) >= 40
    assert len(SHIPPED.voices) == 8
    assert [row.id for row in SHIPPED.media_types] == ORIGINAL["mediaTypes"]


def test_every_original_model_resolves_with_each_tag() -> None:
    for id, tags in ORIGINAL["aiModels"].items():
        assert SHIPPED.qualified(id) is not None, id
        for tag in tags:
            assert SHIPPED.qualified(f"{id}:{tag}") == f"{id}:{tag}"


def test_every_original_media_model_resolves() -> None:
    for id in ORIGINAL["mediaModels"]:
        assert SHIPPED.media_model(id) is not None, id


def test_latest_is_one_of_the_tags() -> None:
    for row in SHIPPED.ai_models:
        assert (row.latest in row.tags) if row.tags else row.latest is None, row.id


def test_rows_say_what_they_are() -> None:
    for row in SHIPPED.ai_models:
        assert row.description, row.id
        assert row.website, row.id
        assert row.icon == f"/icons/models/{row.id}"
    for prompt in SHIPPED.prompts:
        assert 150 < len(prompt.value) < 600, prompt.id


def test_voices_speak_with_known_models() -> None:
    for voice in SHIPPED.voices:
        model = SHIPPED.media_model(voice.model)
        assert model is not None, voice.id
        assert model.type is ModelType.TEXT_TO_SPEECH
    assert [voice.id for voice in SHIPPED.voices] == ORIGINAL["voices"]


def test_media_models_name_known_types_and_parts() -> None:
    types = {row.id: row for row in SHIPPED.media_types}
    for row in SHIPPED.media_models:
        assert row.api_models.keys() <= types.keys(), row.id
        for part in row.dependencies or []:
            assert SHIPPED.media_model(part) is not None, (row.id, part)
    for media_type in types.values():
        for id, name in media_type.api_models.items():
            model = SHIPPED.media_model(id)
            assert model is not None, id
            assert model.api_models[media_type.id] == name


def test_each_task_has_a_model() -> None:
    parts = {ModelType.TEXT_ENCODER, ModelType.LORA, ModelType.VAE}
    assert {row.type for row in SHIPPED.media_models} == set(ModelType) - parts


@pytest.mark.parametrize("id", ["flux-schnell", "flux1-schnell", "tts-alloy"])
def test_name_that_once_led_nowhere_resolves(id: str) -> None:
    assert id in {row.id for row in SHIPPED.media_models}


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("llama3.3", "llama3.3:70b"),
        ("llama3.3:latest", "llama3.3:70b"),
        ("llama3.3:70b", "llama3.3:70b"),
        ("gpt-4o", "gpt-4o"),
        ("gpt-4o:latest", "gpt-4o"),
        ("gemini-flash-1.5", "gemini-flash-1.5"),
        ("llama3.3:9b", None),
        ("gpt-4o:9b", None),
        ("llama3.3:", None),
        ("nobody", None),
        ("nobody:latest", None),
        ("", None),
        (":", None),
    ],
)
def test_name_in_full(name: str, full: str | None) -> None:
    assert SHIPPED.qualified(name) == full


def test_override_replaces_in_place_and_adds_first(tmp_path: Path) -> None:
    rows = [
        {"id": "mine", "tags": ["1b"], "latest": "1b"},
        {"id": "llama3.3", "tags": ["8b"], "latest": "8b", "unknown": True},
        {"id": "team/other"},
    ]
    catalogue = overridden(tmp_path, "ai-models.json", rows)
    ids = [row.id for row in catalogue.ai_models]
    assert ids[:2] == ["mine", "team/other"]
    assert ids[2:] == [row.id for row in SHIPPED.ai_models]
    assert catalogue.qualified("mine") == "mine:1b"
    assert catalogue.qualified("llama3.3") == "llama3.3:8b"
    assert catalogue.qualified("llama3.3:70b") is None
    assert catalogue.problems == {}


def test_empty_prompt_takes_a_shipped_one_away(tmp_path: Path) -> None:
    rows = [{"id": "proofreader", "name": "x", "value": " "}]
    catalogue = overridden(tmp_path, "prompts.json", rows)
    assert len(catalogue.prompts) == len(SHIPPED.prompts) - 1


@pytest.mark.parametrize("content", [b"", b" \n", b"[]", b"\xef\xbb\xbf[]"])
def test_empty_override_changes_nothing(tmp_path: Path, content: bytes) -> None:
    catalogue = overridden(tmp_path, "prompts.json", content)
    assert catalogue.prompts == SHIPPED.prompts
    assert catalogue.problems == {}


@pytest.mark.parametrize(
    "content",
    [b"{", b"{}", b'[{"id": ""}]', b'[{"name": "x"}]', b"\xff\xfe", b"[" * 100_000, b"null"],
)
def test_broken_override_is_named_and_left_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tts-voices.json").write_text('[{"id": "Mine", "model": "lessac"}]')
    catalogue = overridden(tmp_path, "prompts.json", content)
    assert catalogue.prompts == SHIPPED.prompts
    assert list(catalogue.problems) == ["prompts.json"]
    assert catalogue.voices[0].id == "Mine"


def test_override_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "prompts.json").mkdir()
    assert "cannot be read" in Catalogue(tmp_path).problems["prompts.json"]


def test_misspelt_override_is_named(tmp_path: Path) -> None:
    catalogue = overridden(tmp_path, "ai-model.json", [{"id": "x"}])
    assert "is not one of ai-models.json" in catalogue.problems["ai-model.json"]
    assert overridden(tmp_path, "ai-model.json", b"[]\n").problems == {}


def test_reload_sees_a_file_that_came_and_went(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "overrides")
    (tmp_path / "overrides").mkdir()
    file = tmp_path / "overrides" / "ai-models.json"
    file.write_text('[{"id": "mine"}]')
    assert catalogue.qualified("mine") is None
    catalogue.reload()
    assert catalogue.qualified("mine") == "mine"
    file.unlink()
    catalogue.reload()
    assert catalogue.qualified("mine") is None


def test_icon_belongs_to_the_family() -> None:
    generic = icon_of("something-else")
    assert icon_of("gpt-4o") == icon_of("openai/GPT-5") != generic
    assert icon_of("phind-codellama:34b") == icon_of("llama3.3") != icon_of("phi4")
    assert icon_of("") == icon_of("<script>") == generic


def test_icons_are_plain_drawings() -> None:
    for row in SHIPPED.ai_models:
        tags = {
            element.tag.partition("}")[2]
            for element in ElementTree.fromstring(icon_of(row.id)).iter()
        }
        assert tags <= {"svg", "rect", "text", "path", "g", "circle"}
