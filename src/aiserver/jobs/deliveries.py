"""Delivers callbacks from the outbox, so that no slow receiver keeps another one waiting."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import msgspec

from aiserver.contract.errors import ApiError, InvalidRequest, TooBusy
from aiserver.jobs.attempts import Verdict, judge
from aiserver.jobs.callback_secrets import CallbackSecrets, KeyDeleted
from aiserver.jobs.callbacks import example_body, new_message_id
from aiserver.jobs.links import Links
from aiserver.jobs.reply_to import ReplyAddresses, ReplyTo
from aiserver.jobs.signatures import signed_headers
from aiserver.jobs.store import Attempted, Delivery, DeliveryState, Outbox
from aiserver.kit import log
from aiserver.kit.clock import Clock
from aiserver.kit.crypto import EncryptionKeyError
from aiserver.kit.db import StorageError
from aiserver.kit.outbound import Answer, Outbound, OutboundError, TimedOut

_log = log.get("callbacks")
_UNSIGNED = "The callback cannot be signed: its secret does not open; rotate it."
# Between two looks at the outbox when nobody tells of a change.
_SAFETY_SECONDS = 30.0
# The outbox tells one due time only, and that may belong to a receiver that is busy.
_BLOCKED_SECONDS = 1.0
_RECORD_PAUSES = (0.1, 1.0, 5.0)
_JSON = {"content-type": "application/json", "accept": "application/json"}

# Takes a callback to this server's own sink: headers and body in, HTTP status out.
Sink = Callable[[Mapping[str, str], bytes], Awaitable[int]]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """`most` deliveries at a time, `per_receiver` of them to one, `per_key` for the jobs of one
    key, and so many tests of addresses, `tests_per_key` of them. `seconds` for an answer.
    """

    most: int = 128
    per_receiver: int = 8
    per_key: int = 64
    tests: int = 16
    tests_per_key: int = 4
    seconds: float = 20.0


class Tried(msgspec.Struct, frozen=True):
    """What became of a test; `status` None when there was no answer, `error` None when taken."""

    id: str
    delivered: bool
    duration_ms: int
    status: int | None = None
    error: str | None = None


class Deliveries:
    """`run` is a loop for `Background`; `wake` tells it that a callback was made or is due again.

    `sink` serves addresses of this server itself, `links` signs those of results each time.
    """

    def __init__(
        self,
        outbox: Outbox,
        addresses: ReplyAddresses,
        secrets: CallbackSecrets,
        outbound: Outbound,
        clock: Clock,
        *,
        sink: Sink,
        links: Links | None = None,
        limits: Limits | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._outbox = outbox
        self._addresses = addresses
        self._secrets = secrets
        self._outbound = outbound
        self._clock = clock
        self._sink = sink
        self._links = links
        self._limits = limits or Limits()
        self._random = random
        self._running: dict[asyncio.Task[None], Delivery] = {}
        self._woken = asyncio.Event()
        self._trying = Counter[int]()

    def wake(self) -> None:
        self._woken.set()

    @property
    def at_work(self) -> int:
        """Deliveries under way in this process."""
        return len(self._running)

    async def run(self) -> None:
        """Never returns; what is under way when it is cancelled is tried again after a restart."""
        try:
            while True:
                self._woken.clear()
                wait = await self._round_or_pause()
                if wait > 0:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(wait):
                            await self._woken.wait()
        finally:
            tasks = list(self._running)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def round(self) -> float:
        """Begins what is due and can be begun; the seconds until there may be more.

        Raises StorageError. One at a time.
        """
        now, room = self._now(), self._limits.most - len(self._running)
        due = await self._outbox.next_due() if room > 0 else None
        if due is None:
            return _SAFETY_SECONDS
        if due > now:
            return min((due - now + 1) / 1000, _SAFETY_SECONDS)
        share, of_key = _half(self._limits.per_receiver), _half(self._limits.per_key)
        taken = await self._outbox.take(
            # Longer than an attempt can last, so that nobody else begins it meanwhile.
            until=now + int((self._limits.seconds + sum(_RECORD_PAUSES) + 5) * 1000),
            most=room,
            per_receiver=share,
            per_key=of_key,
            busy=self._busy(share),
            busy_keys=self._busy_keys(of_key),
        )
        for delivery in taken:
            task = asyncio.create_task(self._deliver(delivery), name=f"callback {delivery.id}")
            self._running[task] = delivery
            task.add_done_callback(self._ended)
        return 0.0 if taken else _BLOCKED_SECONDS

    async def try_once(self, text: str, *, key_id: int) -> Tried:
        """Sends a signed example to this `replyTo`. Raises InvalidRequest or TooBusy."""
        if self._trying[key_id] >= self._limits.tests_per_key:
            raise TooBusy(
                "Your API key is testing too many addresses; try again shortly.", retry_after=5
            )
        if self._trying.total() >= self._limits.tests:
            raise TooBusy("Too many addresses are being tested; try again shortly.", retry_after=5)
        self._trying[key_id] += 1
        try:
            return await self._try(await self._addresses.admit(text, key_id=key_id), key_id)
        finally:
            # This drops what comes to zero, or every key would be kept.
            self._trying -= Counter((key_id,))

    async def _try(self, reply_to: ReplyTo, key_id: int) -> Tried:
        message_id = new_message_id()
        began = self._clock.monotonic()
        verdict = await self._attempt(
            message_id, reply_to, example_body(message_id), key_id=key_id, attempt=1
        )
        return Tried(
            message_id,
            verdict.state is DeliveryState.DELIVERED,
            round((self._clock.monotonic() - began) * 1000),
            verdict.status,
            verdict.error,
        )

    async def _round_or_pause(self) -> float:
        try:
            return await self.round()
        except StorageError as error:
            # What is under way goes on: a receiver would get it twice.
            _log.warning("outbox_unreachable", reason=str(error))
            return _BLOCKED_SECONDS

    async def _deliver(self, delivery: Delivery) -> None:
        attempt, at = delivery.attempt + 1, self._now()
        began = self._clock.monotonic()
        try:
            verdict = await self._verdict(delivery, attempt)
            await self._record(
                Attempted(
                    id=delivery.id,
                    attempt=attempt,
                    at=at,
                    duration_ms=round((self._clock.monotonic() - began) * 1000),
                    state=verdict.state,
                    due=None if verdict.wait is None else self._now() + round(verdict.wait * 1000),
                    status=verdict.status,
                    error=verdict.error,
                )
            )
        except StorageError as error:
            # The outbox has it due again by itself.
            _log.warning("callback_not_recorded", id=delivery.id, reason=str(error))
            return
        if verdict.state in (DeliveryState.FAILED, DeliveryState.DISABLED):
            _log.warning(
                "callback_given_up", id=delivery.id, job=delivery.job_id, status=verdict.status
            )

    async def _verdict(self, delivery: Delivery, attempt: int) -> Verdict:
        """Raises StorageError."""
        # Content is forgotten after a time; what is left to send then would tell nothing.
        if delivery.body is None:
            return Verdict(DeliveryState.FAILED, error="The callback's content was deleted.")
        try:
            reply_to = self._addresses.read(f"{delivery.verb} {delivery.url}")
            body = delivery.body
            if self._links is not None:
                body = await self._links.written(body)
            return await self._attempt(
                delivery.id, reply_to, body, key_id=delivery.key_id, attempt=attempt
            )
        except KeyDeleted as gone:
            return Verdict(DeliveryState.FAILED, error=gone.message)
        except InvalidRequest as refused:
            error = refused.message
        except StorageError:
            raise
        except Exception:  # a delivery must end whatever it meets, or it is tried for ever
            _log.exception("callback_failed", id=delivery.id)
            error = "The server failed to send this; its log says why."
        return self._judged(None, attempt, error)

    async def _attempt(
        self, message_id: str, reply_to: ReplyTo, body: bytes, *, key_id: int, attempt: int
    ) -> Verdict:
        answer, error = None, None
        try:
            secrets = await self._secrets.of(key_id)
            signed = signed_headers(
                message_id,
                timestamp=int(self._clock.now().timestamp()),
                body=body,
                secrets=secrets.signing(),
            )
            answer = await self._send(reply_to, {**_JSON, **signed}, body, key_id=key_id)
        except EncryptionKeyError:
            error = _UNSIGNED
        except OutboundError as failure:
            error = str(failure)
        return self._judged(answer, attempt, error)

    def _judged(self, answer: Answer | None, attempt: int, error: str | None) -> Verdict:
        return judge(
            answer, attempt=attempt, now=self._clock.now(), random=self._random, error=error
        )

    async def _send(
        self, reply_to: ReplyTo, headers: Mapping[str, str], body: bytes, *, key_id: int
    ) -> Answer:
        if reply_to.own:
            return await self._sunk(headers, body)
        return await self._outbound.send(
            reply_to.url,
            method=reply_to.verb,
            headers=headers,
            body=body,
            seconds=self._limits.seconds,
            caller=key_id,
        )

    async def _sunk(self, headers: Mapping[str, str], body: bytes) -> Answer:
        try:
            async with asyncio.timeout(self._limits.seconds):
                return Answer(await self._sink(headers, body), {}, b"")
        except TimeoutError:
            raise TimedOut from None
        except ApiError as refused:
            return Answer(refused.http_status, {}, refused.message.encode())

    async def _record(self, attempted: Attempted) -> None:
        for pause in (*_RECORD_PAUSES, None):
            try:
                await self._outbox.attempted(attempted)
            except StorageError:
                # A database that restarts must not let a receiver get it twice.
                if pause is None:
                    raise
                await asyncio.sleep(pause)
            else:
                return

    def _busy(self, share: int) -> list[str]:
        """Receivers that a further share could bring over their limit."""
        at_work = Counter(delivery.receiver for delivery in self._running.values())
        over = max(self._limits.per_receiver - share, 0)
        return [receiver for receiver, count in at_work.items() if count > over]

    def _busy_keys(self, share: int) -> list[int]:
        """The same of keys."""
        at_work = Counter(delivery.key_id for delivery in self._running.values())
        over = max(self._limits.per_key - share, 0)
        return [key_id for key_id, count in at_work.items() if count > over]

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        self._woken.set()

    def _now(self) -> int:
        return int(self._clock.now().timestamp() * 1000)


def _half(limit: int) -> int:
    """What one round may add, so that the next one need not wait for all of it to end."""
    return max(limit // 2, 1)
