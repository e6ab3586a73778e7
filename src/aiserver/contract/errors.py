"""Every error that a caller can meet, as one tree; each carries its HTTP status.

ApiError
├─ InvalidRequest 400
│  └─ MalformedBody
├─ Unauthenticated 401
├─ Forbidden 403
├─ NotFound 404
│  └─ ModelNotFound
├─ MethodNotAllowed 405
├─ RequestTimeout 408
├─ Conflict 409
├─ Gone 410
├─ JobFailed (the job's own status)
├─ BodyTooLarge 413
├─ UnsupportedMedia 415
├─ TooBusy 429
├─ UpstreamRejected (the upstream's own 4xx, passed on)
├─ UpstreamFailed 502
├─ Unavailable 503
│  └─ StorageUnavailable
└─ UpstreamTimedOut 504
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec


class FieldError(msgspec.Struct, frozen=True, rename="camel"):
    """What is wrong with one field of a request."""

    error_code: str
    field_name: str
    message: str


class ApiError(Exception):
    """The server failed to do this; its log has the details under the request id."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "InternalServerError"
    reason: ClassVar[str] = "server_error"

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        reason: str | None = None,
        param: str | None = None,
        fields: Sequence[FieldError] = (),
        meta: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        self.error_code = code or self.code
        self.error_reason = reason or self.reason
        self.param = param
        self.fields = tuple(fields)
        self.meta = dict(meta or {})
        self.retry_after = retry_after
        # Filled in on the error's way up, by who knows which answer it is.
        self.headers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def http_status(self) -> int:
        return self.status

    @property
    def message(self) -> str:
        return str(self)


class InvalidRequest(ApiError):
    """The request has invalid values."""

    status = 400
    code = "ArgumentException"
    reason = "invalid_request"

    @classmethod
    def of(cls, fields: Sequence[FieldError], *, param: str | None = None) -> "InvalidRequest":
        """One error from the errors of its fields; the first one, `param` on the wire, speaks."""
        first = fields[0]
        return cls(first.message, code=first.error_code, param=param, fields=fields)


class MalformedBody(InvalidRequest):
    """The body cannot be read as JSON."""

    code = "SerializationException"
    reason = "malformed_body"


class Unauthenticated(ApiError):
    """Not Authenticated. Send an API key: Authorization: Bearer ak-..."""

    status = 401
    code = "Unauthorized"
    reason = "invalid_api_key"


class Forbidden(ApiError):
    """This API key may not do that."""

    status = 403
    code = "Forbidden"
    reason = "permission_denied"


class NotFound(ApiError):
    """There is nothing at this address."""

    status = 404
    code = "NotFound"
    reason = "not_found"


class ModelNotFound(NotFound):
    """No provider serves this model."""

    reason = "model_not_found"


class MethodNotAllowed(ApiError):
    """This address does not answer this HTTP method."""

    status = 405
    code = "MethodNotAllowed"
    reason = "method_not_allowed"


class RequestTimeout(ApiError):
    """The request did not arrive in time; send it again."""

    status = 408
    code = "RequestTimeout"
    reason = "request_timeout"


class Conflict(ApiError):
    """This clashes with something that is already there."""

    status = 409
    code = "Conflict"
    reason = "conflict"


class Gone(ApiError):
    """This is not needed any more and does nothing."""

    status = 410
    code = "Gone"
    reason = "gone"


class BodyTooLarge(ApiError):
    """The body is larger than this server accepts."""

    status = 413
    code = "RequestEntityTooLarge"
    reason = "body_too_large"


class UnsupportedMedia(ApiError):
    """The body's encoding is not supported; send it uncompressed."""

    status = 415
    code = "UnsupportedMediaType"
    reason = "unsupported_media_type"


class TooBusy(ApiError):
    """Too many calls at once; try again later."""

    status = 429
    code = "TooManyRequests"
    reason = "rate_limit_exceeded"


class UpstreamRejected(ApiError):
    """The provider refused this request."""

    code = "UpstreamRejected"
    reason = "provider_rejected"

    def __init__(
        self,
        message: str,
        *,
        status: int,
        reason: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, reason=reason, param=param, retry_after=retry_after)
        self._upstream_status = status

    @property
    def http_status(self) -> int:
        return self._upstream_status


class UpstreamFailed(ApiError):
    """The provider failed to answer; try again or name another provider."""

    status = 502
    code = "UpstreamFailed"
    reason = "provider_error"


class Unavailable(ApiError):
    """The server cannot take this call now; try again shortly."""

    status = 503
    code = "ServiceUnavailable"
    reason = "server_unavailable"


class StorageUnavailable(Unavailable):
    """The server's storage cannot be used now; nothing was changed. Try again shortly."""

    reason = "storage_unavailable"


class UpstreamTimedOut(ApiError):
    """The provider did not answer in time."""

    status = 504
    code = "Timeout"
    reason = "provider_timeout"
