"""Settings: where they come from, what is refused, and that secrets stay hidden."""

from pathlib import Path

import pytest

from aiserver import settings as s


def load(environment: dict[str, str] | None = None, file: Path | None = None, **flags: str):
    return s.load(flags=flags, environment=environment or {}, file=file)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_hold_without_anything() -> None:
    settings = load()
    assert settings[s.PORT] == 5006
    assert settings[s.MAX_BODY] == 50_000_000
    assert settings.get(s.AUTH_SECRET) is None


def test_flag_beats_environment_beats_file(tmp_path: Path) -> None:
    file = write(tmp_path / "ai-server.toml", "port = 1\nlog_level = 'debug'\nhost = 'a'\n")
    settings = load({"PORT": "2", "HOST": "b"}, file, PORT="3")
    assert (settings[s.PORT], settings[s.HOST], settings[s.LOG_LEVEL]) == (3, "b", "debug")
    assert settings.sources["PORT"] == "flag"
    assert settings.sources["HOST"] == "environment"
    assert settings.sources["LOG_LEVEL"] == "file"


def test_unknown_key_stops_with_its_path(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.toml", "prot = 5006\n")
    with pytest.raises(s.SettingError, match=r"mine\.toml: unknown setting `prot`"):
        load(file=file)


@pytest.mark.parametrize("text", ["port = [1]", "[port]\nx = 1", "port = "])
def test_unusable_file_is_explained(tmp_path: Path, text: str) -> None:
    with pytest.raises(s.SettingError, match=r"mine\.toml"):
        load(file=write(tmp_path / "mine.toml", text))


def test_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(s.SettingError, match="Cannot read"):
        load(file=tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("PORT", "http", "whole number"),
        ("PORT", "70000", "up to 65535"),
        ("MAX_BODY", "lots", "50MB"),
        ("SHUTDOWN_GRACE", "soon", "30s"),
        ("LOCAL_MODELS", "maybe", "true or false"),
        ("LOG_LEVEL", "loud", "debug, info"),
        ("OPENAI_BASE_URL", "http://", "URL"),
        ("OPENAI_BASE_URL", "http://host:99999", "URL"),
        ("WORKERS", "4", "PostgreSQL"),
        ("DATABASE_URL", "mysql://host/db", "postgresql://"),
        ("STORAGE_URL", "ftp://host/x", "s3://bucket"),
        ("STORAGE_URL", "s3://", "s3://bucket"),
        ("STORAGE_URL", "s3://bucket?colour=red", "only endpoint"),
        ("STORAGE_URL", "gs://bucket?region=x", "S3 alone"),
        ("WORKERS", "0", "from 1 to"),
        ("AUTH_SECRET", "short", "24 characters"),
    ],
)
def test_wrong_value_says_what_to_write(name: str, value: str, advice: str) -> None:
    with pytest.raises(s.SettingError, match=advice) as caught:
        load({name: value})
    assert name in str(caught.value)


def test_secret_is_read_from_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "secret", "sk-from-a-docker-secret\n")
    settings = load({"OPENAI_API_KEY_FILE": str(path)})
    assert settings[s.OPENAI_API_KEY].reveal() == "sk-from-a-docker-secret"


def test_missing_secret_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(s.SettingError, match="OPENAI_API_KEY_FILE: cannot read"):
        load({"OPENAI_API_KEY_FILE": str(tmp_path / "absent")})


def test_secrets_never_show_themselves() -> None:
    settings = load({"AUTH_SECRET": "canary-canary-canary-canary"})
    shown = repr(settings[s.AUTH_SECRET]) + str(list(settings.shown())) + f"{settings!r}"
    assert "canary" not in shown


def test_wrong_secret_is_not_repeated_in_the_error() -> None:
    with pytest.raises(s.SettingError) as caught:
        load({"AUTH_SECRET": "canary"})
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["s3://me:hidden@bucket/p", "s3://bucket?secret_access_key=hidden&region=x"]
)
def test_credentials_in_a_storage_url_are_refused(url: str) -> None:
    with pytest.raises(s.SettingError, match="AWS_SECRET_ACCESS_KEY") as caught:
        load({"STORAGE_URL": url})
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("10", 10), ("2KB", 2000), ("1 MiB", 2**20), ("2gb", 2 * 10**9)]
)
def test_sizes_take_units(text: str, size: int) -> None:
    assert s.size(text) == size


@pytest.mark.parametrize(("text", "time"), [("5", 5), ("1.5s", 1.5), ("2m", 120), ("7d", 604800)])
def test_durations_take_units(text: str, time: float) -> None:
    assert s.seconds(text) == time


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:11434", "http://localhost:11434"),
        ("0.0.0.0:11434", "http://127.0.0.1:11434"),
        ("https://host/v1/", "https://host/v1"),
    ],
)
def test_addresses_are_completed(text: str, url: str) -> None:
    assert s.web_url(text) == url


def test_alias_sets_the_same() -> None:
    assert load({"OLLAMA_HOST": "0.0.0.0"})[s.OLLAMA_BASE_URL] == "http://127.0.0.1"


def test_table_names_each_setting_once_with_help() -> None:
    names = [name for row in s.SETTINGS for name in (row.name, *row.aliases)]
    assert len(names) == len(set(names))
    assert all(row.help.endswith(".") for row in s.SETTINGS)
