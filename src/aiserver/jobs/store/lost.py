"""What the ledger is told of attempts that ended without their worker: a cost that is not known."""

from aiserver.kit.ids import CallIds, began_ms
from aiserver.kit.ledger import LedgerRow, row

# Calls have numbers by process; these attempts get theirs as if one more process had made them.
NUMBER = "UPDATE revisions SET number = number + 1 WHERE name = 'processes' RETURNING number"


def lost_row(
    ids: CallIds, now: int, *, key_id: int, model: str, worker: str | None
) -> LedgerRow | None:
    """None for a job that asks no provider."""
    if not model and worker is None:
        return None
    id = ids.next(now)
    return row(
        id,
        at=began_ms(id),
        key_id=key_id,
        provider=worker or "",
        model=model,
        prompt_tokens=None,
        completion_tokens=None,
        cost=None,
        lost=1,
    )
