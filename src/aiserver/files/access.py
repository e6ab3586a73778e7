"""Who may read a file: its owner, an administrator, who has a signed address, or everybody."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from aiserver import settings as s
from aiserver.contract.caller import Caller
from aiserver.contract.errors import Forbidden, NotFound
from aiserver.files.artifacts import ARTIFACT, PUB, Artifact, Artifacts
from aiserver.files.paths import absent, owner_in, stored_path
from aiserver.files.signing import SignedUrls, Verdict

Publishes = Callable[[int], bool]


class FileAccess:
    """`publishes` tells of a key's id whether its results are for anybody, asked at every reading.

    What callers sent stays private all the same.
    """

    def __init__(self, artifacts: Artifacts, urls: SignedUrls, publishes: Publishes) -> None:
        self._artifacts = artifacts
        self._urls = urls
        self._publishes = publishes

    def is_public(self, file: Artifact) -> bool:
        return file.kind == PUB or (file.kind == ARTIFACT and self._publishes(file.key_id))

    async def readable(
        self,
        sent: str,
        caller: Caller,
        *,
        expires: int | None = None,
        signature: str | None = None,
        kinds: Sequence[str] | None = None,
    ) -> Artifact:
        """The file of a path, and of a signature beside it.

        Raises NotFound for no file and for one that the caller may not know of, Forbidden for a
        signature that expired.
        """
        file = await self._artifacts.find(stored_path(sent))
        if file is None or (kinds is not None and file.kind not in kinds):
            raise absent()
        if self.is_public(file) or owns(caller, file.key_id):
            return file
        verdict = await self._urls.verdict(file.path, expires, signature)
        if verdict is Verdict.EXPIRED:
            raise Forbidden(
                f"This link expired at {_told(expires or 0)}. Ask for the result again with its "
                "API key, by the status of its job or by QueryFiles, to get a new one.",
                code="LinkExpired",
                reason="link_expired",
            )
        if verdict is not Verdict.VALID:
            raise absent()
        return file

    def still(self, file: Artifact, caller: Caller, *, until: int | None) -> bool:
        """Whether what was `readable` still is, of a row and secrets that are the same.

        `until` is the end of the signature that opened it, in seconds since 1970.
        """
        if self.is_public(file) or owns(caller, file.key_id):
            return True
        return until is not None and self._urls.is_before(until)

    async def own(
        self, sent: str, caller: Caller, *, kinds: Sequence[str] | None = None
    ) -> Artifact:
        """A file that the caller may change.

        Raises NotFound for no file, and Forbidden for a path of another key, file or none.
        """
        try:
            path = stored_path(sent)
        except NotFound:
            raise Forbidden("Invalid Path") from None
        owner = owner_in(path)
        if owner is None:
            raise absent()
        if not owns(caller, owner):
            raise Forbidden("Invalid API Key for File")
        file = await self._artifacts.find(path)
        if file is None or not owns(caller, file.key_id):
            raise absent()
        if kinds is not None and file.kind not in kinds:
            raise absent()
        return file


def publishes_of(settings: s.Settings, key_publishes: Publishes) -> Publishes:
    """Of every key where PUBLIC_ARTIFACTS says so, else as the key has it."""
    return (lambda _: True) if settings[s.PUBLIC_ARTIFACTS] else key_publishes


def owns(caller: Caller, key_id: int) -> bool:
    """Whether files of this key are the caller's to read, list and delete."""
    return caller.is_admin or (caller.known and caller.key_id == key_id)


def _told(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
