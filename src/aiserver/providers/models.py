"""The catalogue: models, prompts, voices and kinds of media provider, shipped and overridden."""

import codecs
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from msgspec import Meta

from aiserver.contract.responses import Wire
from aiserver.kit import log

Id = Annotated[str, Meta(min_length=1, max_length=300)]

_SHIPPED = Path(__file__).with_name("data")
_LATEST = "latest"
_log = log.get("catalogue")


# An empty list or map is an answer too; only a factory of our own keeps it from being left out.
def _no_texts() -> list[str]:
    return []


def _no_map() -> dict[str, Any]:
    return {}


class ModelType(Enum):
    """What a media model does, or what part of another it is."""

    TEXT_TO_IMAGE = "TextToImage"
    TEXT_ENCODER = "TextEncoder"
    IMAGE_UPSCALE = "ImageUpscale"
    TEXT_TO_SPEECH = "TextToSpeech"
    TEXT_TO_AUDIO = "TextToAudio"
    SPEECH_TO_TEXT = "SpeechToText"
    IMAGE_TO_TEXT = "ImageToText"
    IMAGE_TO_IMAGE = "ImageToImage"
    IMAGE_WITH_MASK = "ImageWithMask"
    LORA = "Lora"
    VAE = "VAE"


class AiServiceProvider(Enum):
    """The protocol of a media provider."""

    REPLICATE = "Replicate"
    COMFY = "Comfy"
    OPEN_AI = "OpenAi"


class AiModel(Wire, kw_only=True):
    """A chat or embedding model; `latest` is the tag that the bare id stands for."""

    id: Id
    tags: list[str] = msgspec.field(default_factory=_no_texts)
    latest: str | None = None
    website: str | None = None
    description: str | None = None
    icon: str | None = None
    vision: bool | None = None

    def __post_init__(self) -> None:
        if self.icon is None and "/" not in self.id:
            self.icon = f"/icons/models/{self.id}"


class Prompt(Wire, kw_only=True):
    """A system prompt to choose from."""

    id: Id
    name: str
    value: str


class TextToSpeechVoice(Wire, kw_only=True):
    """A voice and the media model that speaks with it."""

    id: Id
    model: str


class MediaType(Wire, kw_only=True):
    """A kind of media provider; `api_models` maps media models to the provider's own names."""

    id: Id
    api_base_url: str | None = None
    api_key_header: str | None = None
    website: str
    icon: str | None = None
    api_models: dict[str, str] = msgspec.field(default_factory=_no_map)
    provider: AiServiceProvider


class MediaModel(Wire, kw_only=True):
    """A model for pictures or sound; `api_models` maps media types to their own names for it."""

    id: Id
    name: str | None = None
    type: ModelType | None = None
    api_models: dict[str, str] = msgspec.field(default_factory=_no_map)
    supported_tasks: dict[str, list[str]] | None = None
    dependencies: list[str] | None = None
    installer: str | None = None
    path: str | None = None
    workflow: str | None = None
    workflow_vars: dict[str, Any] = msgspec.field(default_factory=_no_map)
    download_token: str | None = None
    download_url: str | None = None
    url: str | None = None


Row = TypeVar("Row", AiModel, Prompt, TextToSpeechVoice, MediaType, MediaModel)


class _File(Generic[Row]):
    """One file of rows, shipped and perhaps overridden under the same name."""

    def __init__(self, name: str, row: type[Row]) -> None:
        self.name = name
        self._decoder = msgspec.json.Decoder(list[row])

    def read(self, overrides: Path | None, problems: dict[str, str]) -> dict[str, Row]:
        """Rows by id: one of the same id replaces, new ones come first."""
        rows = {row.id: row for row in self._decoder.decode((_SHIPPED / self.name).read_bytes())}
        own = self._own(overrides, problems)
        added = {id: row for id, row in own.items() if id not in rows}
        return added | rows | {id: row for id, row in own.items() if id in rows}

    def _own(self, overrides: Path | None, problems: dict[str, str]) -> dict[str, Row]:
        if overrides is None:
            return {}
        try:
            text = (overrides / self.name).read_bytes().removeprefix(codecs.BOM_UTF8)
            return {row.id: row for row in self._decoder.decode(text)} if text.strip() else {}
        except FileNotFoundError:
            return {}
        except OSError as error:
            problems[self.name] = f"cannot be read: {error.strerror}"
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            problems[self.name] = str(error)
        return {}


_AI_MODELS = _File("ai-models.json", AiModel)
_PROMPTS = _File("prompts.json", Prompt)
_VOICES = _File("tts-voices.json", TextToSpeechVoice)
_MEDIA_TYPES = _File("media-types.json", MediaType)
_MEDIA_MODELS = _File("media-models.json", MediaModel)
_FILES = (_AI_MODELS, _PROMPTS, _VOICES, _MEDIA_TYPES, _MEDIA_MODELS)
# Prices are overridden beside these, and read by whoever knows money.
_NAMES = frozenset({"prices.json", *(each.name for each in _FILES)})


class Catalogue:
    """Shipped rows, with those of `overrides` over them; `problems` names files left aside."""

    def __init__(self, overrides: Path | None = None) -> None:
        self._overrides = overrides
        self._ai_models: dict[str, AiModel] = {}
        self._media_models: dict[str, MediaModel] = {}
        self.prompts: list[Prompt] = []
        self.voices: list[TextToSpeechVoice] = []
        self.media_types: list[MediaType] = []
        self.problems: dict[str, str] = {}
        self.reload()

    def reload(self) -> None:
        """Reads every file again; a broken override is logged and counts as absent."""
        problems = self._unknown_files()
        folder = self._overrides
        self._ai_models = _AI_MODELS.read(folder, problems)
        self._media_models = _MEDIA_MODELS.read(folder, problems)
        self.prompts = [p for p in _PROMPTS.read(folder, problems).values() if p.value.strip()]
        self.voices = list(_VOICES.read(folder, problems).values())
        self.media_types = list(_MEDIA_TYPES.read(folder, problems).values())
        self.problems = problems
        for name, problem in problems.items():
            _log.warning("override_ignored", file=name, problem=problem)

    @property
    def ai_models(self) -> list[AiModel]:
        return list(self._ai_models.values())

    @property
    def media_models(self) -> list[MediaModel]:
        """Those that some media provider can be asked for."""
        return [model for model in self._media_models.values() if model.api_models]

    def media_model(self, id: str) -> MediaModel | None:
        """Any media model, also a part of another such as a text encoder."""
        return self._media_models.get(id)

    def ai_model(self, name: str) -> AiModel | None:
        """The row that a name means: `m`, `m:latest` or `m:tag` with a known tag."""
        id, colon, tag = name.partition(":")
        row = self._ai_models.get(id)
        known = row is not None and (not colon or tag == _LATEST or tag in row.tags)
        return row if known else None

    def qualified(self, name: str) -> str | None:
        """The name in full, `m:tag` where the model has tags; None for what is not known."""
        row = self.ai_model(name)
        if row is None:
            return None
        if name in (row.id, f"{row.id}:{_LATEST}"):
            return f"{row.id}:{row.latest}" if row.latest else row.id
        return name

    def _unknown_files(self) -> dict[str, str]:
        if self._overrides is None:
            return {}
        try:
            found = sorted(p for p in self._overrides.glob("*.json") if p.name not in _NAMES)
            return {
                path.name: f"is not one of {', '.join(sorted(_NAMES))}"
                for path in found
                # A data folder may come with empty files of this kind.
                if path.read_bytes().strip() != b"[]"
            }
        except OSError as error:
            return {"overrides": f"cannot be read: {error.strerror}"}
