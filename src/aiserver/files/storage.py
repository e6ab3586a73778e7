"""Where bytes are kept: two folders of this machine, or two places below STORAGE_URL."""

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from aiserver import settings as s

if TYPE_CHECKING:
    from aiserver.files.blobs import Blobs

ARTIFACT = "artifact"


class Storage:
    """Opens each place when it is first needed. Raises StorageUnavailable then."""

    def __init__(self, *, artifacts: Path, files: Path, url: str | None = None) -> None:
        self._folders = {True: artifacts, False: files}
        self._url = url
        self._opened: dict[bool, Blobs] = {}

    @property
    def folders(self) -> tuple[Path, Path]:
        """Those of results and of all else, which nothing is in with a `url`."""
        return self._folders[True], self._folders[False]

    def of(self, kind: str) -> "Blobs":
        """Results lie apart from what callers sent."""
        results = kind == ARTIFACT
        if results not in self._opened:
            self._opened[results] = self._open(results)
        return self._opened[results]

    def is_used(self, kind: str) -> bool:
        """Whether there can be anything; opens nothing."""
        return self._url is not None or self._folders[kind == ARTIFACT].exists()

    def _open(self, results: bool) -> "Blobs":
        # Ten megabytes that a server without files never needs.
        from aiserver.files.blobs import LocalBlobs, remote  # noqa: PLC0415

        if self._url is not None:
            return remote(self._url, "artifacts" if results else "files", home="STORAGE_URL")
        home = s.ARTIFACTS_PATH if results else s.AI_FILES_PATH
        return LocalBlobs(self._folders[results], home=home.name)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """`per_key` in bytes, `keep_seconds` how long results stay; None for no bound."""

    per_key: int | None = None
    keep_seconds: float | None = None


def storage_of(settings: s.Settings) -> Storage:
    """As the settings have it; opens nothing."""
    folder = settings[s.APP_DATA]
    return Storage(
        artifacts=settings.get(s.ARTIFACTS_PATH) or folder / "artifacts",
        files=settings.get(s.AI_FILES_PATH) or folder / "files",
        url=settings.get(s.STORAGE_URL),
    )


def limits_of(settings: s.Settings) -> Limits:
    return Limits(
        per_key=settings.get(s.MAX_STORED_PER_KEY), keep_seconds=settings.get(s.ARTIFACT_TTL)
    )
