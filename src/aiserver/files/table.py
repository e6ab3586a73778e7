"""The table `files`: which bytes belong to whom, and which may be read, kept or deleted."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import msgspec

from aiserver.kit.tables import Rows, Statement, Tables

AT_ONCE = 500
# Later than any day that can come.
NEVER = 2**62
# Whoever was about to delete what lay at a path has done so, and no call writes that long.
SETTLED_AFTER = timedelta(days=2)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)
# Whether a path is still in use must not change between the look and the deed.
_IN_TURN = Statement("UPDATE revisions SET number = number WHERE name = 'files'")


class StoredFile(msgspec.Struct, frozen=True):
    """A row of `files`; times in ms since 1970, `size` in bytes, `duration` in seconds.

    `path` is where its bytes lie, `shown` what callers know it by. `name` is as sent, made plain.
    """

    id: str
    key_id: int
    path: str
    sha256: str
    size: int
    name: str | None
    content_type: str | None
    job_ref: str | None
    created: int
    look: int
    deleted: int | None = None
    kind: str = "upload"
    shown: str = ""
    kept: int | None = None
    expires: int | None = None
    operation: str | None = None
    job_id: int | None = None
    width: int | None = None
    height: int | None = None
    duration: float | None = None


_COLUMNS = ", ".join(StoredFile.__struct_fields__)
_SELECT = f"SELECT {_COLUMNS} FROM files"
_MARKS = ", ".join("?" * len(StoredFile.__struct_fields__))
_PUT = f"INSERT INTO files ({_COLUMNS}) VALUES ({_MARKS})"
# Results lie in a place of their own.
_SAME_BYTES = "o.path = files.path AND (o.kind = 'artifact') = (files.kind = 'artifact')"
_ELSEWHERE = f"""
UPDATE files SET shown = CASE WHEN shown = path THEN ? ELSE shown END, path = ?
WHERE id = ? AND EXISTS
  (SELECT 1 FROM files o WHERE {_SAME_BYTES} AND o.deleted IS NOT NULL)
RETURNING path, shown"""
_USED = "SELECT CAST(coalesce(sum(size), 0) AS BIGINT) FROM files WHERE key_id = ?"
_USED_BY_OTHERS = f"{_USED} AND deleted IS NULL AND NOT (kind = ? AND shown = ?)"
# The same result again stays as long as either was to stay.
_KEEP = f"""
UPDATE files SET kept = ?, expires = CASE
  WHEN expires IS NULL OR kind <> 'artifact' THEN expires
  WHEN EXISTS (SELECT 1 FROM files o WHERE o.shown = files.shown AND {_SAME_BYTES}
    AND o.deleted IS NULL AND o.kept IS NOT NULL AND o.expires IS NULL) THEN NULL
  ELSE (SELECT max(o.expires) FROM files o WHERE o.shown = files.shown AND {_SAME_BYTES}
    AND o.deleted IS NULL) END
WHERE id = ? AND deleted IS NULL"""
_LOOK_AT_END = (
    f"UPDATE files SET look = coalesce(expires, {NEVER}) WHERE id = ? AND deleted IS NULL "
    f"RETURNING {_COLUMNS}"
)
_REPLACED = """
UPDATE files SET deleted = ?, look = ? WHERE kind = ? AND shown = ? AND id <> ?
AND deleted IS NULL AND kept IS NOT NULL AND EXISTS
  (SELECT 1 FROM files o WHERE o.id = ? AND o.deleted IS NULL)
RETURNING id"""
_SHARED_WITH = f"""
DELETE FROM files WHERE kind = ? AND shown = ? AND deleted IS NOT NULL AND EXISTS
  (SELECT 1 FROM files o WHERE {_SAME_BYTES} AND o.deleted IS NULL)"""
_MARKED_AT = f"{_SELECT} WHERE kind = ? AND shown = ? AND deleted = ?"
_MARK = "UPDATE files SET deleted = ?, look = ? WHERE id IN ({ids}) AND deleted IS NULL"
_SHARED = f"""
DELETE FROM files WHERE id IN ({{ids}}) AND deleted IS NOT NULL AND EXISTS
  (SELECT 1 FROM files o WHERE {_SAME_BYTES} AND o.deleted IS NULL)"""
_MARKED = f"{_SELECT} WHERE id IN ({{ids}}) AND deleted IS NOT NULL"
_FORGET = "DELETE FROM files WHERE id IN ({ids}) AND deleted <= ?"
_LOOK = "UPDATE files SET look = deleted + ? WHERE id IN ({ids})"
_FIND = f"{_SELECT} WHERE id = ? AND deleted IS NULL"
_DUE = f"{_SELECT} WHERE look <= ? ORDER BY look LIMIT ?"
_READABLE = "deleted IS NULL AND kept IS NOT NULL AND (expires IS NULL OR expires > ?)"
_SHOWN = f"{_SELECT} WHERE shown = ? AND {_READABLE} ORDER BY kind, kept DESC, id"
_IDS_SHOWN = "SELECT id FROM files WHERE shown = ? AND kind = ? AND deleted IS NULL AND kept > 0"
_OLD = """
SELECT id FROM files WHERE kind = 'artifact' AND created <= ? AND expires IS NULL
AND deleted IS NULL AND kept IS NOT NULL ORDER BY created LIMIT ?"""
_AFTER = f"{_SELECT} WHERE id > ? AND deleted IS NULL AND kept IS NOT NULL ORDER BY id LIMIT ?"
_ALL = "SELECT count(*), CAST(coalesce(sum(size), 0) AS BIGINT) FROM files WHERE deleted IS NULL"


class FileTable:
    """Raises StorageError where the table cannot be used."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    async def add(
        self, file: StoredFile, *, elsewhere: str, room: Callable[[int], object] | None
    ) -> StoredFile:
        """Before its bytes; `elsewhere` where somebody may be about to delete what is there.

        `room` is told the bytes that its owner has kept otherwise, and raises where it is full.
        """
        used = Statement(_USED_BY_OTHERS, (file.key_id, file.kind, file.shown))

        def check(found: list[Rows]) -> None:
            if room is not None:
                room(int(found[-1][0][0]))

        _, _, moved, *_ = await self._tables.write(
            _IN_TURN,
            Statement(_PUT, msgspec.structs.astuple(file)),
            Statement(_ELSEWHERE, (elsewhere, elsewhere, file.id)),
            *(() if room is None else (used,)),
            check=check,
        )
        if not moved:
            return file
        return msgspec.structs.replace(file, path=moved[0][0], shown=moved[0][1])

    async def keep(self, file: StoredFile, now: int) -> tuple[StoredFile | None, list[StoredFile]]:
        """After its bytes: it is what its path shows from now on.

        None where it was deleted meanwhile. Then those whose bytes nobody needs any more.
        """
        here = (file.kind, file.shown)
        _, _, kept, _, _, replaced = await self._tables.write(
            _IN_TURN,
            Statement(_KEEP, (now, file.id)),
            Statement(_LOOK_AT_END, (file.id,)),
            Statement(_REPLACED, (now, now, *here, file.id, file.id)),
            Statement(_SHARED_WITH, here),
            Statement(_MARKED_AT, (*here, now)),
        )
        return (StoredFile(*kept[0]) if kept else None), [StoredFile(*row) for row in replaced]

    async def mark(self, ids: Sequence[str], now: int, key_id: int | None) -> list[StoredFile]:
        """Those whose bytes nobody needs; their rows stay for now, so nobody takes the path."""
        among = _marks(ids)
        of_key = "" if key_id is None else " AND key_id = ?"
        whose = () if key_id is None else (key_id,)
        *_, rows = await self._tables.write(
            _IN_TURN,
            Statement(_MARK.format(ids=among) + of_key, (now, now, *ids, *whose)),
            Statement(_SHARED.format(ids=among), ids),
            Statement(_MARKED.format(ids=among), ids),
        )
        return [StoredFile(*row) for row in rows]

    async def forget(self, ids: Sequence[str], now: int) -> None:
        """After their bytes; until they are looked at once more, nobody takes their path."""
        among, day = _marks(ids), SETTLED_AFTER // _MS
        await self._tables.write(
            Statement(_FORGET.format(ids=among), (*ids, now - day)),
            Statement(_LOOK.format(ids=among), (day, *ids)),
        )

    async def look_again(self, ids: Sequence[str], at: int) -> None:
        if ids:
            sql = f"UPDATE files SET look = ? WHERE id IN ({_marks(ids)})"
            await self._tables.write(Statement(sql, (at, *ids)))

    def version(self) -> int | None:
        """As long as it is the same, so is every row; None where nobody can tell."""
        return self._tables.version()

    async def find(self, id: str) -> StoredFile | None:
        rows = await self._tables.read(_FIND, id)
        return StoredFile(*rows[0]) if rows else None

    async def shown(self, path: str, now: int) -> list[StoredFile]:
        """What can be read at this path: results first, then uploads of each kind."""
        return [StoredFile(*row) for row in await self._tables.read(_SHOWN, path, now)]

    async def ids_shown(self, path: str, kind: str) -> list[str]:
        return [row[0] for row in await self._tables.read(_IDS_SHOWN, path, kind)]

    async def due(self, now: int) -> list[StoredFile]:
        """At most AT_ONCE."""
        return [StoredFile(*row) for row in await self._tables.read(_DUE, now, AT_ONCE)]

    async def old(self, before: int) -> list[str]:
        """Ids of results without an end of their own, at most AT_ONCE."""
        return [row[0] for row in await self._tables.read(_OLD, before, AT_ONCE)]

    async def after(self, id: str) -> list[StoredFile]:
        """At most AT_ONCE of all that can be read, by id."""
        return [StoredFile(*row) for row in await self._tables.read(_AFTER, id, AT_ONCE)]

    async def all(self) -> tuple[int, int]:
        """How many, and their bytes."""
        [(count, size)] = await self._tables.read_long(_ALL)
        return count, size

    async def used(self, key_id: int) -> int:
        """Bytes; those of two jobs count twice."""
        return (await self._tables.read(f"{_USED} AND deleted IS NULL", key_id))[0][0]

    async def known(self, paths: set[str], *, results: bool) -> set[str]:
        """Those of these places of bytes that a row has."""
        where = f"path IN ({_marks(paths)}) AND (kind = 'artifact') = (? = 1)"
        rows = await self._tables.read(
            f"SELECT path FROM files WHERE {where}", *paths, int(results)
        )
        return {row[0] for row in rows}

    async def page(
        self,
        now: int,
        *,
        key_id: int | None,
        kind: str | None,
        contains: str | None,
        skip: int,
        take: int,
    ) -> tuple[list[StoredFile], int]:
        """The newest first, and how many there are in all."""
        where, values = [_READABLE], [now]
        parameters: list[int | str] = list(values)
        for column, value in (("key_id", key_id), ("kind", kind)):
            if value is not None:
                where.append(f"{column} = ?")
                parameters.append(value)
        if contains:
            where.append("(lower(name) LIKE ? ESCAPE '!' OR shown LIKE ? ESCAPE '!')")
            parameters += [f"%{_literal(contains.lower())}%"] * 2
        among = " AND ".join(where)
        [(total,)] = await self._tables.read_long(
            f"SELECT count(*) FROM files WHERE {among}", *parameters
        )
        order = "ORDER BY created DESC, id LIMIT ? OFFSET ?"
        rows = await self._tables.read_long(
            f"{_SELECT} WHERE {among} {order}", *parameters, take, skip
        )
        return [StoredFile(*row) for row in rows], total


def ms(moment: datetime) -> int:
    return (moment - _EPOCH) // _MS


def moment(at: int) -> datetime:
    return _EPOCH + at * _MS


def _marks(values: Sequence[str] | set[str]) -> str:
    return ", ".join("?" * len(values))


def _literal(text: str) -> str:
    for special in "!%_":
        text = text.replace(special, f"!{special}")
    return text
