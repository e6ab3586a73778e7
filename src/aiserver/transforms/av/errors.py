"""How a transform fails: by the caller's file, or by the server.

InvalidRequest
└─ MediaRefused 400
ApiError
└─ TransformFailed 500
"""

from aiserver.contract.errors import ApiError, InvalidRequest


class MediaRefused(InvalidRequest):
    """This file cannot be used; send it in another format."""

    reason = "invalid_media"

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail


class TransformFailed(ApiError):
    """The transform failed on the server; its log has the details."""

    reason = "transform_failed"

    def __init__(self, message: str, *, detail: str = "") -> None:
        """`detail`: the child's last lines, for the operator only."""
        super().__init__(message)
        self.detail = detail
