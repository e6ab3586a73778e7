"""Chat's own HTTP/1.1 connections to upstreams: pooled, bounded in time and memory."""

from aiserver.kit.upstream.connection import Connection
from aiserver.kit.upstream.errors import (
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRefused,
    UpstreamReset,
    UpstreamTimeout,
    UpstreamTruncated,
)
from aiserver.kit.upstream.pool import UpstreamPool
from aiserver.kit.upstream.response import UpstreamResponse
from aiserver.kit.upstream.target import Target, Timeouts, request_head

__all__ = [
    "Connection",
    "Target",
    "Timeouts",
    "UpstreamError",
    "UpstreamPool",
    "UpstreamProtocolError",
    "UpstreamRefused",
    "UpstreamReset",
    "UpstreamResponse",
    "UpstreamTimeout",
    "UpstreamTruncated",
    "request_head",
]
