"""Every setting in one table: its name, how it is read, its default and its help."""

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, overload

from aiserver.settings.casts import (
    Secret,
    count,
    database_url,
    one_of,
    origins,
    port,
    seconds,
    secret,
    size,
    storage_url,
    switch,
    text,
    web_url,
    whole,
)

T = TypeVar("T")


class SettingError(Exception):
    """A setting that cannot be used; the message names it and says what to write instead."""


@dataclass(frozen=True)
class Setting(Generic[T]):
    """One row: `default` is text as an operator would write it, or None for "not set"."""

    name: str
    read: Callable[[str], T]
    default: str | None
    help: str
    aliases: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return self.name.lower()


PORT = Setting("PORT", port, "5006", "Port that the server listens on.")
HOST = Setting(
    "HOST",
    text,
    "localhost",
    "Address that the server listens on; localhost means 127.0.0.1 and ::1.",
)
APP_DATA = Setting("APP_DATA", Path, "App_Data", "Folder for everything that must survive.")
AI_FILES_PATH = Setting(
    "AI_FILES_PATH", Path, None, "Folder for uploaded files. Without it APP_DATA/files."
)
ARTIFACTS_PATH = Setting(
    "ARTIFACTS_PATH", Path, None, "Folder for results. Without it APP_DATA/artifacts."
)
STORAGE_URL = Setting(
    "STORAGE_URL",
    storage_url,
    None,
    "Keeps results and files in an object store: s3://bucket/prefix?endpoint=http://host:8333 and "
    "region=, gs://bucket or az://container; credentials come from its usual variables, such as "
    "AWS_ACCESS_KEY_ID.",
)
STORAGE_REDIRECTS = Setting(
    "STORAGE_REDIRECTS",
    switch,
    "false",
    "Sends who downloads a picture, sound or film on to STORAGE_URL's store, by an address that is "
    "good for five minutes; for a store that callers reach.",
)
MAX_STORED_PER_KEY = Setting(
    "MAX_STORED_PER_KEY", size, None, "Files of one API key that are kept; without it no bound."
)
ARTIFACT_TTL = Setting(
    "ARTIFACT_TTL", seconds, None, "How long results are kept; without it until they are deleted."
)
AUTH_SECRET = Setting(
    "AUTH_SECRET",
    secret,
    None,
    "The administrator's secret, at least 24 characters. Without it one is generated at the first "
    "start, printed once and kept hashed.",
)
ENCRYPTION_KEY = Setting(
    "ENCRYPTION_KEY",
    secret,
    None,
    "Encrypts upstream keys at rest: 32 bytes as base64 or 64 hex digits. Without it one is "
    "generated in APP_DATA/encryption.key.",
)
DATABASE_URL = Setting(
    "DATABASE_URL",
    database_url,
    None,
    "PostgreSQL for several processes and nodes: postgresql://user:password@host:5432/database. "
    "Without it everything is in SQLite files in APP_DATA.",
)
WORKERS = Setting(
    "WORKERS", count, "1", "Gateway processes of this machine; more than one needs DATABASE_URL."
)
MAX_BODY = Setting(
    "MAX_BODY", size, "50MB", "Largest body that is held in memory: JSON and form values."
)
MAX_UPLOAD = Setting(
    "MAX_UPLOAD", size, "2GB", "Largest upload; file parts are written to disk as they arrive."
)
MAX_BUFFERED = Setting(
    "MAX_BUFFERED",
    size,
    "512MB",
    "All bodies held in memory together; over it callers get 503 with Retry-After.",
)
MAX_HEADERS = Setting("MAX_HEADERS", size, "32KiB", "Largest request line and headers together.")
MAX_FILE = Setting("MAX_FILE", size, "10MB", "Largest file that POST /uploads keeps.")
PUBLIC_ARTIFACTS = Setting(
    "PUBLIC_ARTIFACTS",
    switch,
    "false",
    "Lets anyone read results, by paths that tell no secret; a key's feature PublicArtifacts, its.",
)
ARTIFACT_URL_TTL = Setting(
    "ARTIFACT_URL_TTL", seconds, "7d", "How long the signed address of a file opens it."
)
VARIANT_CACHE = Setting(
    "VARIANT_CACHE", size, "1GB", "Made variants that are kept; those used longest ago go first."
)
ASSETS_BASE_URL = Setting(
    "ASSETS_BASE_URL", web_url, None, "What addresses of files begin with: a CDN. Else PUBLIC_URL."
)
AUTH_SECRET_IN_QUERY = Setting(
    "AUTH_SECRET_IN_QUERY",
    switch,
    "true",
    "Takes the administrator's secret as ?authsecret= too, as older tools send it.",
)
PUBLIC_CATALOGUE = Setting(
    "PUBLIC_CATALOGUE", switch, "true", "Lists models and prompts to anyone; false wants a key."
)
METRICS_TOKEN = Setting(
    "METRICS_TOKEN", secret, None, "Opens /metrics to a scraper that sends it as a Bearer token."
)
KEEP_PROMPTS = Setting(
    "KEEP_PROMPTS",
    switch,
    "false",
    "Keeps prompts and answers in the history; turns the hot lane off.",
)
HISTORY_MONTHS = Setting(
    "HISTORY_MONTHS", whole, "13", "Months of history that are kept; 0 keeps all."
)
JOBS_MONTHS = Setting(
    "JOBS_MONTHS", whole, "13", "Months of finished jobs that are kept; 0 keeps all."
)
JOB_CONTENT_TTL = Setting(
    "JOB_CONTENT_TTL", seconds, "7d", "How long what a finished job was asked and answered stays."
)
MAX_QUEUED = Setting("MAX_QUEUED", whole, "100000", "Jobs that may wait; 0 is no bound.")
MAX_QUEUED_PER_KEY = Setting(
    "MAX_QUEUED_PER_KEY", whole, "0", "Jobs of one API key that may wait; 0 is no bound."
)
MAX_RUNNING_JOBS = Setting("MAX_RUNNING_JOBS", whole, "256", "Jobs that run at once.")
PUBLIC_URL = Setting("PUBLIC_URL", web_url, None, "The address that others reach this server by.")
OUTBOUND_ALLOW = Setting(
    "OUTBOUND_ALLOW",
    text,
    "",
    "Private addresses that callbacks may go to: hosts, host:port and networks, as a comma list.",
)
CORS_ORIGINS = Setting(
    "CORS_ORIGINS",
    origins,
    None,
    "Browser origins that may call, as a comma list; * is any, but signs nobody in.",
)
HEADER_TIMEOUT = Setting(
    "HEADER_TIMEOUT", seconds, "15s", "Longest time a client may take to send its headers."
)
BODY_TIMEOUT = Setting(
    "BODY_TIMEOUT", seconds, "30s", "Longest silence of a client in the middle of its body."
)
KEEP_ALIVE = Setting(
    "KEEP_ALIVE", seconds, "75s", "How long an idle connection of a client stays open."
)
SHUTDOWN_GRACE = Setting(
    "SHUTDOWN_GRACE", seconds, "30s", "How long running calls may finish after a stop signal."
)
PROVIDER_WAIT = Setting(
    "PROVIDER_WAIT", seconds, "30s", "How long a call waits for a free slot of a busy provider."
)
PROVIDER_CONNECT = Setting(
    "PROVIDER_CONNECT", seconds, "10s", "Longest time to connect to a provider."
)
PROVIDER_FIRST_BYTE = Setting(
    "PROVIDER_FIRST_BYTE", seconds, "5m", "Longest time until a provider begins to answer."
)
PROVIDER_GAP = Setting(
    "PROVIDER_GAP", seconds, "2m", "Longest silence of a provider in the middle of its answer."
)
PROVIDER_TOTAL = Setting(
    "PROVIDER_TOTAL", seconds, "15m", "Longest time that one answer of a provider may take."
)
HOT_LANE = Setting(
    "HOT_LANE",
    one_of("auto", "off"),
    "auto",
    "Relays plain chats between two sockets; off, and KEEP_PROMPTS, serve all on the slow path.",
)
LOG_LEVEL = Setting(
    "LOG_LEVEL", one_of("debug", "info", "warning", "error"), "info", "Least level that is logged."
)
LOG_FORMAT = Setting(
    "LOG_FORMAT",
    one_of("auto", "console", "json"),
    "auto",
    "Form of log lines on stdout; auto is console on a terminal and json elsewhere.",
)
LOCAL_MODELS = Setting(
    "LOCAL_MODELS", switch, "true", "Runs the embedded default model in a child process."
)
MODELS_URL = Setting(
    "MODELS_URL", web_url, None, "Mirror that model weights are fetched from first: URL/{file}."
)
OPENAI_API_KEY = Setting("OPENAI_API_KEY", secret, None, "Adds the provider openai.")
OPENAI_BASE_URL = Setting("OPENAI_BASE_URL", web_url, None, "Points openai elsewhere.")
OPENROUTER_API_KEY = Setting("OPENROUTER_API_KEY", secret, None, "Adds the provider openrouter.")
OPENROUTER_BASE_URL = Setting("OPENROUTER_BASE_URL", web_url, None, "Points openrouter elsewhere.")
MISTRAL_API_KEY = Setting("MISTRAL_API_KEY", secret, None, "Adds the provider mistral.")
MISTRAL_BASE_URL = Setting("MISTRAL_BASE_URL", web_url, None, "Points mistral elsewhere.")
GROQ_API_KEY = Setting("GROQ_API_KEY", secret, None, "Adds the provider groq.")
GROQ_BASE_URL = Setting("GROQ_BASE_URL", web_url, None, "Points groq elsewhere.")
ANTHROPIC_API_KEY = Setting("ANTHROPIC_API_KEY", secret, None, "Adds the provider anthropic.")
ANTHROPIC_BASE_URL = Setting("ANTHROPIC_BASE_URL", web_url, None, "Points anthropic elsewhere.")
GOOGLE_API_KEY = Setting(
    "GOOGLE_API_KEY", secret, None, "Adds the provider google.", aliases=("GEMINI_API_KEY",)
)
GOOGLE_BASE_URL = Setting("GOOGLE_BASE_URL", web_url, None, "Points google elsewhere.")
OLLAMA_BASE_URL = Setting(
    "OLLAMA_BASE_URL", web_url, None, "Adds the provider ollama.", aliases=("OLLAMA_HOST",)
)

# In the order in which they stand above.
SETTINGS: tuple[Setting[Any], ...] = tuple(
    cast("Setting[Any]", each) for each in tuple(globals().values()) if isinstance(each, Setting)
)

DEFAULT_FILE = Path("ai-server.toml")


class Settings:
    """The values in force, looked up by their row: `settings[PORT]`."""

    def __init__(self, values: Mapping[str, Any], sources: Mapping[str, str]) -> None:
        self._values = values
        self.sources = sources

    def __getitem__(self, setting: Setting[T]) -> T:
        """The value of a setting that has a default or was given; KeyError otherwise."""
        value = self._values[setting.name]
        if value is None:
            raise KeyError(setting.name)
        return value

    @overload
    def get(self, setting: Setting[T]) -> T | None: ...
    @overload
    def get(self, setting: Setting[T], default: T) -> T: ...
    def get(self, setting: Setting[T], default: T | None = None) -> T | None:
        value = self._values[setting.name]
        return default if value is None else value

    def texts(self) -> dict[str, str]:
        """The values that are text, secrets in clear, for who looks them up by name."""
        found: dict[str, str] = {}
        for name, value in self._values.items():
            if isinstance(value, Secret):
                found[name] = value.reveal()
            elif isinstance(value, str):
                found[name] = value
        return found

    def shown(self) -> Iterator[tuple[str, str, str]]:
        """(name, value as it may be printed, where it came from), in the table's order."""
        for setting in SETTINGS:
            value = self._values[setting.name]
            yield setting.name, "" if value is None else str(value), self.sources[setting.name]


def load(
    *,
    flags: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Settings:
    """Flags win over the environment, then the file, then defaults. Raises SettingError."""
    environment = os.environ if environment is None else environment
    layers = (
        ("flag", dict(flags or {})),
        ("environment", _from_environment(environment)),
        ("file", _from_file(file)),
        ("default", {s.name: s.default for s in SETTINGS if s.default is not None}),
    )
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for setting in SETTINGS:
        source, written = next(
            ((name, layer[setting.name]) for name, layer in layers if setting.name in layer),
            ("not set", None),
        )
        values[setting.name] = None if written is None else _cast(setting, written, source)
        sources[setting.name] = source
    _refuse_unusable(values)
    return Settings(values, sources)


def _cast(setting: Setting[Any], written: str, source: str) -> Any:
    try:
        return setting.read(written)
    except ValueError as error:
        shown = "" if setting.read in (secret, database_url, storage_url) else f" is {written!r}"
        raise SettingError(f"{setting.name} ({source}){shown}: {error}.") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for setting in SETTINGS:
        for name in (setting.name, *setting.aliases):
            if environment.get(name, "").strip():
                found.setdefault(setting.name, environment[name].strip())
            elif environment.get(f"{name}_FILE", "").strip():
                found.setdefault(setting.name, _read_secret_file(name, environment))
    return found


def _read_secret_file(name: str, environment: Mapping[str, str]) -> str:
    path = Path(environment[f"{name}_FILE"])
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{name}_FILE: cannot read {path}: {error}.") from None


def _from_file(file: Path | None) -> dict[str, str]:
    path = file or DEFAULT_FILE
    if file is None and not path.exists():
        return {}
    try:
        written = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"Cannot read the settings file {path}: {error}.") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{path} is not valid TOML: {error}.") from None
    known = {setting.key: setting for setting in SETTINGS}
    found: dict[str, str] = {}
    for key, value in written.items():
        if key.lower() not in known:
            raise SettingError(
                f"{path}: unknown setting `{key}`. `ai-server serve --help` lists the settings."
            )
        if isinstance(value, (dict, list)):
            raise SettingError(f"{path}: `{key}` must be one value, not a table or a list.")
        found[known[key.lower()].name] = str(value).strip()
    return found


def _refuse_unusable(values: Mapping[str, Any]) -> None:
    given: Secret | None = values[AUTH_SECRET.name]
    if given is not None and len(given.reveal()) < 24:
        raise SettingError(
            "AUTH_SECRET is shorter than 24 characters. Use a longer one, or unset it to have one "
            "generated."
        )
    if values[DATABASE_URL.name] is None:
        if values[WORKERS.name] > 1:
            raise SettingError(
                "WORKERS: more than one process needs PostgreSQL. Set DATABASE_URL, or WORKERS=1."
            )
    elif values[ENCRYPTION_KEY.name] is None:
        raise SettingError(
            "ENCRYPTION_KEY: on PostgreSQL every node needs the same one, so none is generated. "
            "Make one with `openssl rand -base64 32`."
        )
