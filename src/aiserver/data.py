"""What lives in APP_DATA, opened for a server or for one command."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from aiserver import settings as s
from aiserver.engines import Engine, open_engine
from aiserver.files.artifacts import Artifacts
from aiserver.files.shelf import Shelf
from aiserver.files.storage import limits_of, storage_of
from aiserver.files.store import FileStore
from aiserver.jobs.callback_secrets import CallbackSecrets
from aiserver.jobs.store import Announce, Bounds, JobStore, Outbox
from aiserver.keys.access import KeyRing
from aiserver.keys.sessions import Sessions
from aiserver.keys.store import AdminSecret, KeyStore
from aiserver.kit.clock import Clock
from aiserver.kit.crypto import Cipher, KeyFile, parse_key
from aiserver.kit.db import StorageError
from aiserver.kit.redact import Redactor
from aiserver.kit.tables import Statement, Tables
from aiserver.providers.local.weights import WeightStore
from aiserver.providers.store import ProviderStore


@dataclass(frozen=True)
class Data:
    """What lives in APP_DATA, opened and migrated; the command line works on the same.

    `key_file` is None where ENCRYPTION_KEY is given. No other process of the installation that runs
    has the number `process`. `ring` is empty until it is told to read the keys.
    """

    engine: Engine
    keys: KeyStore
    secret: AdminSecret
    sessions: Sessions
    ring: KeyRing
    providers: ProviderStore
    weights: WeightStore
    callback_secrets: CallbackSecrets
    shelf: Shelf
    artifacts: Artifacts
    files: FileStore
    key_file: KeyFile | None
    worker: int
    process: int | None

    def jobs(self, bounds: Bounds, announce: Announce) -> JobStore:
        return self.engine.jobs(bounds, announce)

    def outbox(self) -> Outbox:
        return self.engine.outbox()

    async def close(self) -> None:
        await self.engine.close()


def redactor_for(settings: s.Settings) -> Redactor:
    """Knows every secret of the settings from the first line on. Raises SettingError."""
    redact = Redactor()
    for setting in s.SETTINGS:
        value = settings.get(setting)
        if isinstance(value, s.Secret):
            redact.learn(value.reveal())
    url = settings.get(s.DATABASE_URL)
    password = _password(url.reveal()) if url else None
    if password:
        redact.learn(unquote(password))
    return redact


def _password(url: str) -> str | None:
    try:
        return urlsplit(url).password
    except ValueError:
        # Its words may hold a part of the password.
        raise s.SettingError(
            "DATABASE_URL cannot be read. Write postgresql://user:password@host:port/database, "
            "and percent-encode what is no letter or digit in user and password, as %5B for [."
        ) from None


async def open_data(
    settings: s.Settings,
    clock: Clock,
    redact: Redactor,
    *,
    lean: bool = False,
    worker: int | None = None,
) -> Data:
    """Raises StorageError or EncryptionKeyError; then nothing must listen.

    `lean` keeps the memory of the migration tools out of this process; `worker` is for one that
    serves, and tells apart those that share APP_DATA.
    """
    folder = data_folder(settings)
    try:
        given = settings.get(s.ENCRYPTION_KEY)
        key_file = None if given else KeyFile(folder / "encryption.key")
        cipher = _cipher(given, key_file)
    except OSError as error:
        raise StorageError(f"Cannot use the data folder {folder}: {error}.") from error
    engine = await open_engine(settings, folder, clock, lean=lean)
    tables = engine.tables
    keys = KeyStore(tables, clock)
    secret = AdminSecret(tables, clock)
    sessions = Sessions(tables, clock)
    admin = settings.get(s.AUTH_SECRET)
    shelf = Shelf(tables, storage_of(settings), limits_of(settings), clock)
    return Data(
        engine=engine,
        keys=keys,
        secret=secret,
        sessions=sessions,
        ring=KeyRing(keys, secret, sessions, clock, auth_secret=admin.reveal() if admin else None),
        providers=ProviderStore(tables, cipher, clock, redact.learn),
        weights=WeightStore(folder / "models", settings.get(s.MODELS_URL)),
        callback_secrets=CallbackSecrets(
            tables, cipher, clock, _by_its_form, is_key=lambda key_id: _is_key(tables, key_id)
        ),
        shelf=shelf,
        artifacts=Artifacts(shelf),
        files=FileStore(shelf),
        key_file=key_file,
        worker=worker or 1,
        process=await _numbered(tables) if worker else None,
    )


async def _numbered(tables: Tables) -> int:
    move = "UPDATE revisions SET number = number + 1 WHERE name = 'processes' RETURNING number"
    [[(number,)]] = await tables.write(Statement(move))
    return number


async def _is_key(tables: Tables, key_id: int) -> bool:
    return bool(await tables.read("SELECT id FROM api_keys WHERE id = ?", key_id))


def _by_its_form(_: str) -> None:
    """A callback secret is masked by what it looks like; learning them all would know no bound."""


def _cipher(given: s.Secret | None, key_file: KeyFile | None) -> Cipher:
    if key_file is not None:
        return Cipher(*key_file.keys(), reread=key_file.keys)
    return Cipher(parse_key(given.reveal() if given else ""))


def data_folder(settings: s.Settings) -> Path:
    folder: Path = settings[s.APP_DATA]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"Cannot use the data folder {folder}: {error}.") from error
    return folder
