"""Log lines on stdout: for people on a terminal, JSON elsewhere, secrets masked in both."""

import logging
import sys
from collections.abc import Callable
from typing import Any, TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Logger = structlog.stdlib.BoundLogger


def configure(
    *,
    level: str,
    form: str,
    redact: Callable[[str], str],
    stream: TextIO = sys.stdout,
    worker: int | None = None,
) -> None:
    """Sends every logger of the process, ours and the libraries', through one renderer.

    `worker` numbers the process where several write to one log.
    """
    console = form == "console" or (form == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if worker is not None:
        shared.append(_numbered(worker))
    if not console:
        shared.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _renderer(console, stream),
                _masked(redact),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("uvicorn", "uvicorn.error", "uvicorn.access", "alembic", "asyncio"):
        logger = logging.getLogger(noisy)
        logger.handlers.clear()
        logger.propagate = True
    # One line a call would cost more than the call; history records calls.
    logging.getLogger("uvicorn.access").disabled = True
    for chatty in ("alembic", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def get(room: str) -> Logger:
    """The logger of a room; its name stands in every line."""
    return cast(Logger, structlog.get_logger(f"aiserver.{room}", room=room))


def _renderer(console: bool, stream: TextIO) -> Processor:
    if console:
        # A plain traceback: one with local variables would print prompts and keys.
        return structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    return structlog.processors.JSONRenderer()


def _numbered(worker: int) -> Processor:
    def add(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
        event["worker"] = worker
        return event

    return add


def _masked(redact: Callable[[str], str]) -> Callable[[WrappedLogger, str, Any], str]:
    # The last step, over the finished line: no value can reach the sink around it.
    def mask(_: WrappedLogger, __: str, line: str | bytes | EventDict) -> str:
        return redact(str(line))

    return mask
