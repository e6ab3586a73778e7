"""Writes the addresses of results into answers and callbacks: whole, and signed at that moment."""

from collections.abc import Callable
from typing import Any, cast

import msgspec

from aiserver.files.names import is_ours
from aiserver.files.paths import address, owner_in
from aiserver.files.signing import SignedUrls

_ARTIFACTS = "/artifacts/"
_MARK = _ARTIFACTS.encode()
# Where answers list their files, and where callbacks do.
_LISTS = ("results", "outputs")
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_items = msgspec.json.Decoder(list[dict[str, Any]]).decode
_encode = msgspec.json.Encoder().encode


class Links:
    """`base` goes before paths of this server, else what the caller reached it by.

    `publishes` tells of a key's id whether its results are for anybody: their addresses have no
    signature and stay the same.
    """

    def __init__(
        self, urls: SignedUrls, publishes: Callable[[int], bool], *, base: str = ""
    ) -> None:
        self._urls = urls
        self._publishes = publishes
        self.base = base.rstrip("/")

    async def of(self, url: str, *, base: str = "") -> str:
        """The address of a result of ours; others stay as they are. Raises StorageError."""
        shown = url.removeprefix(self.base) if self.base else url
        path = shown.removeprefix(_ARTIFACTS)
        if path == shown or not is_ours(path):
            return url
        before = self.base or base
        owner = owner_in(path)
        if owner is not None and self._publishes(owner):
            return before + address(path)
        return await self._urls.signed(path, before)

    async def written(self, body: bytes, *, base: str = "") -> bytes:
        """JSON with the addresses of what it lists in full; anything else as it is."""
        if _MARK not in body:
            return body
        try:
            members = cast("dict[str, Any]", _decode(body))
            lists = {name: _items(members[name]) for name in _LISTS if name in members}
        except msgspec.DecodeError:
            return body
        for item in [item for items in lists.values() for item in items]:
            if isinstance(url := item.get("url"), str):
                item["url"] = await self.of(url, base=base)
        return _encode({**members, **lists})
