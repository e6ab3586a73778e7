"""Jobs as rows of SQLite, and what a write does beside them."""

# ruff: noqa: S608 - the names joined into SQL are this package's own.

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from aiserver.jobs.job import JOB_COLUMNS, SUMMARY_COLUMNS, Job, State, Summary
from aiserver.jobs.store import DELIVERY_COLUMNS, Announce, Changed, NewDelivery
from aiserver.kit.db import Connection, Row

COLUMNS = ", ".join(JOB_COLUMNS)
CHANGED = "id, ref_id, key_id, kind, model, reply_to"
AMONG = "IN (SELECT value FROM json_each(?))"
_STATES = {state.value: state for state in State}
_STATE = JOB_COLUMNS.index("state")
_SUMMARY_STATE = SUMMARY_COLUMNS.index("state")
_ONE = f"SELECT {COLUMNS} FROM jobs WHERE id = ?"
_DELIVERY = f"""
INSERT OR IGNORE INTO outbox ({", ".join(DELIVERY_COLUMNS)})
VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, ?, 'Pending', NULL, NULL, NULL)"""


def job_of(row: Row) -> Job:
    values = list(row)
    values[_STATE] = _STATES[values[_STATE]]
    return Job(*values)


def summary_of(row: Row) -> Summary:
    values = list(row)
    values[_SUMMARY_STATE] = _STATES[values[_SUMMARY_STATE]]
    return Summary(*values)


def state_of(word: str) -> State:
    return _STATES[word]


def listed(values: Iterable[Any]) -> str:
    """For AMONG."""
    return msgspec.json.encode(list(values)).decode()


def insert_delivery(connection: Connection, delivery: NewDelivery, now: int) -> None:
    new = delivery
    values = (new.id, new.job_id, new.key_id, new.url, new.receiver, new.verb, new.body)
    connection.execute(_DELIVERY, (*values, now, new.due))


class Effects:
    """What a write changed: what waiters must know, and how many jobs wait more or less by key."""

    def __init__(self, now: int, announce: Announce) -> None:
        self.now = now
        self.changed: list[Changed] = []
        self.moves: Counter[int] = Counter()
        self._announce = announce

    def reached(self, connection: Connection, row: Row, state: State) -> Changed:
        """For a row of CHANGED, after its update; an ended one with `reply_to` is announced."""
        id, ref_id, key_id, kind, model, reply_to = row
        called_back = False
        if reply_to is not None and state.ended:
            [ended] = connection.rows(_ONE, (id,))
            delivery = self._announce(job_of(ended))
            if delivery is not None:
                insert_delivery(connection, delivery, self.now)
                called_back = True
        changed = Changed(id, ref_id, key_id, state, kind, model, called_back)
        self.changed.append(changed)
        return changed
