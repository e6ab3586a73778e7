"""What can be called about callbacks: a sink to try them against."""

from typing import Annotated

from msgspec import Meta

from aiserver.contract.operation import POST, Access, Route, operation
from aiserver.contract.responses import Wire


class DummyReplyToResponse(Wire, kw_only=True):
    ref_id: str | None = None


@operation(
    tag="Jobs",
    verbs=POST,
    access=Access.OPEN,
    returns=DummyReplyToResponse,
    routes=(Route("/dummyreplyto", POST),),
)
class DummyReplyTo(Wire, kw_only=True):
    """Takes a callback and remembers its refId, to try callbacks without a server of one's own."""

    ref_id: Annotated[str, Meta(max_length=200)] | None = None


@operation(tag="Jobs", verbs=POST, access=Access.KEY, returns=None)
class HasDummyReplyTo(Wire, kw_only=True):
    """Tells whether DummyReplyTo got this refId, and forgets it; 404 when it did not."""

    ref_id: Annotated[str, Meta(max_length=200)] | None = None
