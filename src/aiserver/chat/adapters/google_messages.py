"""Turns the messages of the normal form into Gemini's turns and their parts."""

from collections.abc import Callable
from typing import Any, cast

import msgspec

from aiserver.contract.errors import InvalidRequest

Part = dict[str, Any]

# What Gemini takes from a caller that lost the signature of a function call, as Google documents.
NO_SIGNATURE = "skip_thought_signature_validator"
AUDIO = {
    "wav": "audio/wav",
    "mp3": "audio/mp3",
    "aac": "audio/aac",
    "aiff": "audio/aiff",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
}
# By a URL's ending; for any other Gemini is left to find out what it fetched.
MEDIA = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "heic": "image/heic",
    "heif": "image/heif",
    "pdf": "application/pdf",
}


class Turns:
    """A conversation in Gemini's form. `signed`: function calls must bear a signature."""

    def __init__(self, *, signed: bool) -> None:
        self.contents: list[dict[str, Any]] = []
        self.system: list[Part] = []
        self._signed = signed
        self._called: dict[str, str] = {}
        self._readers: dict[str, Callable[[dict[str, Any], str], None]] = {
            "system": self._instruct,
            "developer": self._instruct,
            "user": self._ask,
            "assistant": self._reply,
            "tool": self._return,
        }

    def read(self, messages: Any) -> None:
        """Raises InvalidRequest for what Gemini has no form for."""
        for index, item in enumerate(members_list(messages)):
            where = f"messages[{index}]"
            reader = self._readers.get(str(item.get("role")))
            if reader is None:
                raise unfit(f"{where}.role must be one of {', '.join(self._readers)}.")
            reader(item, where)
        if not self.contents:
            # Instructions alone are a question to other models, and an error to Gemini.
            self._add("user", self.system)
            self.system = []
        if not self.contents:
            raise unfit("messages hold no content to answer.")

    def _add(self, role: str, parts: list[Part]) -> None:
        if not parts:
            return
        if self.contents and self.contents[-1]["role"] == role:
            self.contents[-1]["parts"].extend(parts)
        else:
            self.contents.append({"role": role, "parts": list(parts)})

    def _instruct(self, message: dict[str, Any], where: str) -> None:
        self.system.extend(parts_of(message.get("content"), where))

    def _ask(self, message: dict[str, Any], where: str) -> None:
        self._add("user", parts_of(message.get("content"), where))

    def _reply(self, message: dict[str, Any], where: str) -> None:
        parts = parts_of(message.get("content"), where)
        signature = _signature(message)
        if signature and parts:
            parts[-1]["thoughtSignature"] = signature
        calls = members_list(message.get("tool_calls"))
        parts += [self._call(call, where, first=not index) for index, call in enumerate(calls)]
        self._add("model", parts)

    def _call(self, call: dict[str, Any], where: str, *, first: bool) -> Part:
        function = members(call.get("function"))
        name, id = str(function.get("name") or ""), str(call.get("id") or "")
        if not name:
            raise unfit(f"{where}.tool_calls must each name a function.")
        self._called[id] = name
        spoken: dict[str, Any] = {"name": name, "args": _arguments(function, where)}
        if id:
            spoken["id"] = id
        part: Part = {"functionCall": spoken}
        signature = _signature(call) or (NO_SIGNATURE if self._signed and first else None)
        if signature:
            part["thoughtSignature"] = signature
        return part

    def _return(self, message: dict[str, Any], where: str) -> None:
        id = str(message.get("tool_call_id") or "")
        if id not in self._called:
            raise unfit(f"{where}.tool_call_id names no tool call of an earlier message.")
        text = "".join(
            part.get("text", "") for part in parts_of(message.get("content"), where, only="text")
        )
        answer = {"id": id, "name": self._called[id], "response": _result(text)}
        self._add("user", [{"functionResponse": answer}])


def parts_of(content: Any, where: str, *, only: str | None = None) -> list[Part]:
    """The parts of one message's content, empty texts left out."""
    if content is None or isinstance(content, str):
        return [{"text": content}] if content else []
    parts: list[Part] = []
    for item in members_list(content):
        kind = str(item.get("type"))
        reader = _PARTS.get(kind)
        if reader is None or (only and kind != only):
            raise unfit(f"{where}.content has a part of type {kind!r}, which cannot be sent here.")
        parts += reader(item, where)
    return parts


def members(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def members_list(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; what is none reads as an object without members."""
    return [members(item) for item in cast("list[Any]", value)] if isinstance(value, list) else []


def unfit(message: str, param: str = "messages") -> InvalidRequest:
    return InvalidRequest(message, param=param)


def _signature(carrier: dict[str, Any]) -> str | None:
    google = members(members(carrier.get("extra_content")).get("google"))
    signature = google.get("thought_signature")
    return signature if isinstance(signature, str) and signature else None


def _arguments(function: dict[str, Any], where: str) -> dict[str, Any]:
    text = function.get("arguments")
    if not text:
        return {}
    try:
        return msgspec.json.decode(str(text), type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise unfit(
            f"{where}.tool_calls: the arguments of {function.get('name')} are not a JSON object."
        ) from None


def _result(text: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        return {"result": text}


def _text(part: dict[str, Any], where: str) -> list[Part]:
    text = part.get("text") or part.get("refusal")
    return [{"text": str(text)}] if text else []


def _image(part: dict[str, Any], where: str) -> list[Part]:
    image = part.get("image_url")
    url = str(image if isinstance(image, str) else members(image).get("url") or "")
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        return [_inline(url, where)]
    if scheme not in ("http", "https"):
        raise unfit(f"{where}.content: an image's URL must be a data: URI, or start with https://.")
    ending = url.partition("?")[0].partition("#")[0].rpartition(".")[2].lower()
    file = {"fileUri": url}
    if ending in MEDIA:
        file["mimeType"] = MEDIA[ending]
    return [{"fileData": file}]


def _audio(part: dict[str, Any], where: str) -> list[Part]:
    audio = members(part.get("input_audio"))
    kind = AUDIO.get(str(audio.get("format")))
    if kind is None:
        raise unfit(f"{where}.content: input_audio.format must be one of {', '.join(AUDIO)}.")
    return [{"inlineData": {"mimeType": kind, "data": str(audio.get("data") or "")}}]


def _file(part: dict[str, Any], where: str) -> list[Part]:
    data = members(part.get("file")).get("file_data")
    if not data:
        raise unfit(f"{where}.content: send a file as file.file_data, a base64 data: URI.")
    return [_inline(str(data), where)]


def _inline(uri: str, where: str) -> Part:
    head, comma, data = uri.partition(",")
    kind, *extras = head[5:].split(";")
    if not (comma and uri[:5].lower() == "data:" and "base64" in extras and "/" in kind):
        raise unfit(f"{where}.content: data must be a URI such as data:image/png;base64,...")
    return {"inlineData": {"mimeType": kind, "data": data}}


_PARTS: dict[str, Callable[[dict[str, Any], str], list[Part]]] = {
    "text": _text,
    "refusal": _text,
    "image_url": _image,
    "input_audio": _audio,
    "file": _file,
}
