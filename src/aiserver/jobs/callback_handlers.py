"""Answers the operations about callbacks."""

from collections.abc import Sequence

import msgspec

from aiserver.contract.autoquery import asks_total
from aiserver.contract.errors import NotFound, Unavailable
from aiserver.contract.operation import Call, Handler
from aiserver.contract.responses import QueryResponse
from aiserver.jobs.asked import key_of, scope_of
from aiserver.jobs.callback_operations import (
    CallbackSecretResponse,
    GetCallbackSecret,
    QueryDeliveries,
    RedeliverCallback,
    RedeliverCallbackResponse,
    RotateCallbackSecret,
    TestCallback,
    TestCallbackResponse,
)
from aiserver.jobs.callback_queries import DeliveryQueries
from aiserver.jobs.callback_secrets import CallbackSecrets, Secrets
from aiserver.jobs.deliveries import Deliveries
from aiserver.jobs.job import LARGEST_ID
from aiserver.jobs.records import CallbackAttempt, CallbackDelivery
from aiserver.jobs.shown import maybe_moment, moment
from aiserver.jobs.store import (
    Attempt,
    Delivery,
    DeliveryFilter,
    DeliveryState,
    Filter,
    JobStore,
    Outbox,
)
from aiserver.kit.crypto import EncryptionKeyError


class CallbackHandlers:
    """Callers see and redeliver the callbacks of their own key; administrators everyone's."""

    def __init__(
        self, jobs: JobStore, outbox: Outbox, deliveries: Deliveries, secrets: CallbackSecrets
    ) -> None:
        self._jobs = jobs
        self._outbox = outbox
        self._deliveries = deliveries
        self._secrets = secrets
        self._queries = DeliveryQueries()

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {
            QueryDeliveries: self.query,
            RedeliverCallback: self.redeliver,
            TestCallback: self.test,
            GetCallbackSecret: self.secret,
            RotateCallbackSecret: self.rotate,
        }

    async def query(self, request: QueryDeliveries, call: Call) -> QueryResponse[CallbackDelivery]:
        page, scope = self._queries.page(request, call.pairs), scope_of(call)
        job_id = await self._job_of(request, scope)
        found, total = [], 0
        if job_id is None or 0 < job_id <= LARGEST_ID:
            found, total = await self._outbox.deliveries(
                DeliveryFilter(
                    id=request.id,
                    job_id=job_id,
                    key_id=scope,
                    states=None if request.state is None else [request.state],
                    skip=page.skip,
                    take=page.take,
                )
            )
        rows = await self._shown(found, logs=request.id is not None or job_id is not None)
        return QueryResponse(
            offset=page.skip,
            total=total if asks_total(request) else 0,
            results=self._queries.language.answered(request, rows),
        )

    async def redeliver(self, request: RedeliverCallback, call: Call) -> RedeliverCallbackResponse:
        scope = scope_of(call)
        if not await self._outbox.redeliver(request.id, key_id=scope):
            raise NotFound("Callback not found.")
        # Read before the loop is told, so that the answer shows it as it waits.
        delivery = await self._outbox.delivery(request.id, key_id=scope)
        self._deliveries.wake()
        if delivery is None:
            raise NotFound("Callback not found.")
        [row] = await self._shown([delivery], logs=True)
        return RedeliverCallbackResponse(result=row)

    async def test(self, request: TestCallback, call: Call) -> TestCallbackResponse:
        tried = await self._deliveries.try_once(request.reply_to, key_id=key_of(call))
        return TestCallbackResponse(
            id=tried.id,
            delivered=tried.delivered,
            http_status=tried.status,
            error=tried.error,
            duration_ms=tried.duration_ms,
        )

    async def secret(self, request: GetCallbackSecret, call: Call) -> CallbackSecretResponse:
        try:
            secrets = await self._secrets.of(key_of(call))
        except EncryptionKeyError as error:
            raise _sealed() from error
        return _secret(secrets)

    async def rotate(self, request: RotateCallbackSecret, call: Call) -> CallbackSecretResponse:
        try:
            secrets = await self._secrets.rotate(key_of(call))
        except EncryptionKeyError as error:
            raise _sealed() from error
        return _secret(secrets)

    async def _job_of(self, request: QueryDeliveries, scope: int | None) -> int | None:
        """The job that is asked for, 0 for one that there is not; None for all jobs."""
        # 0 is how typed clients say nothing.
        if request.job_id or not request.ref_id:
            return request.job_id or None
        job = await self._jobs.find(ref_id=request.ref_id, key_id=scope)
        return 0 if job is None else job.id

    async def _shown(self, found: Sequence[Delivery], *, logs: bool) -> list[CallbackDelivery]:
        ids = {delivery.job_id for delivery in found if delivery.job_id is not None}
        refs: dict[int, str] = {}
        if ids:
            summaries, _ = await self._jobs.summaries(Filter(ids=ids, take=len(ids)))
            refs = {each.id: each.ref_id for each in summaries}
        return [
            _row(
                delivery,
                ref_id=refs.get(delivery.job_id or 0),
                log=await self._outbox.attempts(delivery.id) if logs else None,
            )
            for delivery in found
        ]


def _row(
    delivery: Delivery, *, ref_id: str | None, log: Sequence[Attempt] | None
) -> CallbackDelivery:
    return CallbackDelivery(
        id=delivery.id,
        job_id=delivery.job_id,
        ref_id=ref_id,
        key_id=delivery.key_id,
        url=delivery.url,
        verb=delivery.verb,
        state=delivery.state,
        attempts=delivery.attempt,
        created_date=moment(delivery.created),
        due_date=moment(delivery.due) if delivery.state is DeliveryState.PENDING else None,
        delivered_date=maybe_moment(delivery.delivered),
        http_status=delivery.last_status,
        error=delivery.last_error,
        log=None if log is None else [_attempt(each) for each in log],
    )


def _attempt(attempt: Attempt) -> CallbackAttempt:
    return CallbackAttempt(
        at=moment(attempt.at),
        duration_ms=attempt.duration_ms,
        http_status=attempt.status,
        error=attempt.error,
    )


def _secret(secrets: Secrets) -> CallbackSecretResponse:
    return CallbackSecretResponse(
        secret=secrets.current, previous_until=maybe_moment(secrets.previous_until)
    )


def _sealed() -> Unavailable:
    return Unavailable(
        "The callback secret cannot be opened with the server's encryption key; "
        "ask your administrator."
    )
