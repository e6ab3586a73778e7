"""What can be called about callbacks: their deliveries, a test, and the secret that signs them."""

from datetime import datetime
from typing import Annotated

from msgspec import Meta

from aiserver.contract.autoquery import Query
from aiserver.contract.operation import GET, POST, Access, operation
from aiserver.contract.responses import QueryResponse, ResponseStatus, Wire
from aiserver.jobs.records import CallbackDelivery
from aiserver.jobs.status_operations import JobId, RefId
from aiserver.jobs.store import DeliveryState

DeliveryId = Annotated[str, Meta(min_length=1, max_length=100)]


@operation(
    tag="Jobs",
    verbs=GET,
    access=Access.KEY,
    returns=QueryResponse[CallbackDelivery],
    beyond_contract=True,
)
class QueryDeliveries(Query, kw_only=True):
    """Queries the callbacks of the caller's jobs; an administrator sees everyone's."""

    id: DeliveryId | None = None
    job_id: JobId | None = None
    ref_id: RefId | None = None
    state: DeliveryState | None = None


class RedeliverCallbackResponse(Wire, kw_only=True):
    result: CallbackDelivery
    response_status: ResponseStatus | None = None


@operation(
    tag="Jobs",
    verbs=POST,
    access=Access.KEY,
    returns=RedeliverCallbackResponse,
    beyond_contract=True,
)
class RedeliverCallback(Wire, kw_only=True):
    """Delivers a callback of the caller's again, under the same webhook-id.

    It is tried at once, then by the plan from where it stood; one whose attempts were all used
    has as many again. While an attempt is under way nothing else is sent: where that one is not
    taken, the next follows at once.
    """

    id: DeliveryId


class TestCallbackResponse(Wire, kw_only=True):
    """What the receiver did: `httpStatus` where it answered, `error` where it did not take it."""

    id: str
    delivered: bool
    http_status: int | None = None
    error: str | None = None
    duration_ms: int
    response_status: ResponseStatus | None = None


@operation(
    tag="Jobs",
    verbs=POST,
    access=Access.KEY,
    returns=TestCallbackResponse,
    ends_with_caller=True,
    beyond_contract=True,
)
class TestCallback(Wire, kw_only=True):
    """Sends a signed example to an address, once, and tells what the receiver said."""

    reply_to: Annotated[str, Meta(min_length=1, max_length=2000)]


class CallbackSecretResponse(Wire, kw_only=True):
    """`secret` begins with whsec_; until `previousUntil` the one before it signs along."""

    secret: str
    previous_until: datetime | None = None
    response_status: ResponseStatus | None = None

    def __repr__(self) -> str:
        return f"CallbackSecretResponse(previous_until={self.previous_until})"


@operation(
    tag="Jobs",
    verbs=GET,
    access=Access.KEY,
    returns=CallbackSecretResponse,
    beyond_contract=True,
)
class GetCallbackSecret(Wire, kw_only=True):
    """Shows the secret that signs the callbacks of the caller's key."""


@operation(
    tag="Jobs",
    verbs=POST,
    access=Access.KEY,
    returns=CallbackSecretResponse,
    beyond_contract=True,
)
class RotateCallbackSecret(Wire, kw_only=True):
    """Gives the caller's key a new secret for callbacks; the old one signs along for a while."""
