"""What is known of one call: what was asked, who was tried, what it used and how it ended."""

from decimal import Decimal
from typing import Protocol

import msgspec


class Usage(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tokens as the upstream counted them; None is not reported, which is not zero.

    `prompt` includes `cached` and `cache_written`, `completion` includes `reasoning`. `cost` is in
    dollars, from upstreams that state one.
    """

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None
    cache_written: int | None = None
    reasoning: int | None = None
    cost: Decimal | None = None


class Considered(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One provider as it was when a choice was made: its place in line and why."""

    provider: str
    running: int
    concurrency: int
    priority: int
    weight: int
    state: str


class Attempt(msgspec.Struct, kw_only=True, gc=False):
    """One provider that was asked; times in seconds after the call's start.

    `outcome` is "ok" or the kind of failure; `lost`: it may have cost something nobody reported.
    `detail` is the upstream's own text, for administrators. `dropped` names the members that the
    caller sent and this model or upstream does not take.
    """

    provider: str
    model: str
    began: float
    ended: float = 0.0
    outcome: str = ""
    status: int | None = None
    lost: bool = False
    detail: str = ""
    considered: tuple[Considered, ...] = ()
    dropped: tuple[str, ...] = ()


class Left(Protocol):
    """What a faster path leaves for the slower one to go on with."""

    def drop(self) -> None:
        """Frees what nobody has taken up."""
        ...


class Trace(msgspec.Struct, kw_only=True, gc=False):
    """One call, filled in as it goes; whoever ends the call hands it on to be settled.

    `at` is seconds since 1970, `started` and `first_token` are of the monotonic clock, `waited` is
    seconds spent on upstreams, `cost` in dollars. `key_id` is 0 for the administrator and None for
    nobody. `provider_model` is the model as the provider names it, `served` as the gateway does.
    `left` is what the hot lane hands over with a call that it cannot finish.
    """

    id: int
    at: float
    started: float
    operation: str
    request_id: str
    key_id: int | None
    address: str = ""
    method: str = ""
    path: str = ""
    model: str | None = None
    served: str | None = None
    provider: str | None = None
    provider_type: str | None = None
    provider_model: str | None = None
    attempts: list[Attempt] = []
    usage: Usage | None = None
    first_token: float | None = None
    waited: float = 0.0
    streamed: bool = False
    tag: str | None = None
    ref_id: str | None = None
    prompt: bytes | None = None
    answer: bytes | None = None
    duration: float = 0.0
    status: int = 0
    error: str | None = None
    message: str | None = None
    cost: Decimal | None = None
    left: Left | None = None
