"""What a call asks to be done, whichever operation it came by, and to which of its files."""

from collections.abc import Mapping

from aiserver.contract.errors import InvalidRequest
from aiserver.contract.uploads import FileField, Upload, assign
from aiserver.transforms import arguments, images, media
from aiserver.transforms.arguments import Task
from aiserver.transforms.av.requests import AudioRequest
from aiserver.transforms.operations import ImageRequest, MediaRequest
from aiserver.transforms.task_operations import CreateMediaTransform

MARK = "watermark"


def task_of(request: ImageRequest | MediaRequest | CreateMediaTransform) -> Task:
    """Raises InvalidRequest for raw arguments that mean no task."""
    if isinstance(request, CreateMediaTransform):
        return arguments.asked(request.request)
    return request if isinstance(request, ImageRequest) else media.asked(request)


def part_of(task: Task) -> str:
    """The part that its file comes as."""
    if isinstance(task, ImageRequest):
        return "image"
    return "audio" if isinstance(task, AudioRequest) else "video"


def check(task: Task, files: Mapping[str, Upload]) -> None:
    """Raises InvalidRequest for what is wrong before any file is read."""
    part = part_of(task)
    assign([FileField(part)], {name: file for name, file in files.items() if name == part})
    for name in (part, MARK):
        if name in files and files[name].size == 0:
            raise InvalidRequest(f"The {name} file is empty", param=name)
    if isinstance(task, ImageRequest):
        images.check(task, marked=MARK in files)
    else:
        media.check(task, marked=MARK in files)
