"""Answers what callers ask of their queued chats."""

from typing import Any

import msgspec

from aiserver.chat.ollama_operations import OllamaGeneration
from aiserver.chat.operations import OpenAiChatCompletion
from aiserver.chat.status_operations import GetOllamaGenerationStatus, GetOpenAiChatStatus
from aiserver.contract.operation import Call, Handler, JsonBytes
from aiserver.contract.twins import statuses_of, twins_of
from aiserver.jobs.job import State
from aiserver.jobs.queue import Queue
from aiserver.jobs.shown import error_of, state_of, status_of
from aiserver.jobs.status_handlers import job_told_by
from aiserver.jobs.status_operations import StatusRequest

_STATUSES = statuses_of(twins_of((OpenAiChatCompletion, OllamaGeneration)))


class ChatStatusHandlers:
    """The stored answer goes out as it came, members that no type here knows included."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def handlers(self) -> dict[type[msgspec.Struct], Handler]:
        return {GetOpenAiChatStatus: self.status, GetOllamaGenerationStatus: self.status}

    async def status(self, request: StatusRequest, call: Call) -> JsonBytes:
        job = await job_told_by(self._queue, call, request, _STATUSES)
        answer: dict[str, Any] = {
            "jobId": job.id,
            "refId": job.ref_id,
            "jobState": state_of(job),
            "status": status_of(job),
        }
        if job.state is State.COMPLETED and job.result is not None:
            answer["result"] = msgspec.Raw(job.result)
        error = error_of(job)
        if error is not None:
            answer["responseStatus"] = error
        return JsonBytes(msgspec.json.encode(answer))
