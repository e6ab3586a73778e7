"""A conversation in OpenAI's form as the system prompt and turns that Anthropic takes."""

import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, cast

import msgspec

from aiserver.contract.errors import InvalidRequest

Json = dict[str, Any]

_SYSTEM = frozenset({"system", "developer"})
_IMAGES = frozenset({"image/jpeg", "image/png", "image/gif", "image/webp"})
_ALIASES = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}
# How the base64 of each format begins.
_BEGINNINGS = {
    "/9j/": "image/jpeg",
    "iVBOR": "image/png",
    "R0lGOD": "image/gif",
    "UklGR": "image/webp",
}
_PDF = "application/pdf"
_PDF_BEGINS = "JVBERi0"
# Other providers' ids hold characters that are refused here.
_NOT_IN_ID = re.compile(r"[^a-zA-Z0-9_-]")
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])


def conversation(messages: Any) -> tuple[list[Json], list[Json]]:
    """(system blocks, turns). A chat of system messages alone becomes the user's turn.

    Raises InvalidRequest that names the message and part which cannot be carried.
    """
    system: list[Json] = []
    turns: list[Json] = []
    for index, message in enumerate(_dicts(messages, "messages")):
        at = f"messages[{index}]"
        role = str(message.get("role"))[:40]
        if role in _SYSTEM:
            system += _marked(list(_texts(message.get("content"), at)), message)
            continue
        read = _ROLES.get(role)
        if read is None:
            _unfit(at, f"a role of {role!r} is not known to this provider")
        blocks = _marked(read(message, at), message)
        speaker = "assistant" if role == "assistant" else "user"
        if turns and turns[-1]["role"] == speaker:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": speaker, "content": blocks})
    if not turns and not system:
        _unfit("messages", "there is no text in any of them; send at least one")
    return (system, turns) if turns else ([], [{"role": "user", "content": system}])


def _user(message: Json, at: str) -> list[Json]:
    images = message.get("images")
    shown = enumerate(cast("list[Any]", images)) if isinstance(images, list) else ()
    blocks = list(_parts(message.get("content"), at))
    return blocks + [_image(image, f"{at}.images[{index}]") for index, image in shown]


def _assistant(message: Json, at: str) -> list[Json]:
    if message.get("function_call"):
        _unfit(f"{at}.function_call", "it is outdated; use tool_calls")
    thoughts = _dicts(message.get("thinking_blocks") or [], f"{at}.thinking_blocks")
    blocks = [kept for thought in thoughts if (kept := _thought(thought))]
    blocks += _texts(message.get("content"), at)
    if not message.get("content"):
        blocks += _texts(message.get("refusal"), at)
    calls = _dicts(message.get("tool_calls") or [], f"{at}.tool_calls")
    return blocks + [_call(call, f"{at}.tool_calls[{n}]") for n, call in enumerate(calls)]


def _tool(message: Json, at: str) -> list[Json]:
    result: Json = {"type": "tool_result", "tool_use_id": _id(message.get("tool_call_id"), at)}
    content = message.get("content")
    blocks = list(_parts(content, at))
    if blocks:
        result["content"] = content if isinstance(content, str) else blocks
    return [result]


_ROLES: dict[str, Callable[[Json, str], list[Json]]] = {
    "user": _user,
    "assistant": _assistant,
    "tool": _tool,
}


def _thought(block: Json) -> Json | None:
    """Thinking as it was given out; without its signature it would be refused."""
    if block.get("type") == "redacted_thinking" and block.get("data"):
        return {"type": "redacted_thinking", "data": block["data"]}
    if block.get("type") != "thinking" or not block.get("signature"):
        return None
    thinking, signature = block.get("thinking") or "", block["signature"]
    return {"type": "thinking", "thinking": thinking, "signature": signature}


def _call(call: Json, at: str) -> Json:
    function: Any = call.get("function")
    if not isinstance(function, dict):
        _unfit(at, "only calls of functions can be carried")
    members = cast("Json", function)
    input = _arguments(members.get("arguments"), f"{at}.function.arguments")
    return {
        "type": "tool_use",
        "id": _id(call.get("id"), at),
        "name": members.get("name"),
        "input": input,
    }


def _arguments(arguments: Any, at: str) -> Any:
    if isinstance(arguments, dict):
        return cast("Json", arguments)
    if arguments is None or arguments == "":
        return {}
    try:
        _object.decode(arguments)
    except (msgspec.MsgspecError, TypeError, RecursionError):
        _unfit(at, "this is not a JSON object; send the arguments as the model wrote them")
    return msgspec.Raw(arguments.encode())


def _id(id: Any, at: str) -> str:
    if not isinstance(id, str) or not id:
        _unfit(at, "a tool call and its result need the call's id")
    return _NOT_IN_ID.sub("_", id)


def _texts(content: Any, at: str) -> Iterator[Json]:
    for index, block in enumerate(_parts(content, at)):
        if block["type"] != "text":
            _unfit(f"{at}.content[{index}]", "only text can be carried in such a message")
        yield block


def _parts(content: Any, at: str) -> Iterator[Json]:
    """The blocks of a content; those of white space alone are left out, being refused."""
    if content is None:
        return
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    for index, part in enumerate(_dicts(content, f"{at}.content")):
        where = f"{at}.content[{index}]"
        read = _PARTS.get(str(part.get("type")))
        if read is None:
            kind = str(part.get("type"))[:40]
            _unfit(where, f"a part of type {kind!r} cannot be carried to this provider")
        block = read(part, where)
        if block["type"] != "text" or block["text"].strip():
            yield _marked([block], part)[0]


def _text(part: Json, at: str) -> Json:
    text = part.get("text") or part.get("refusal") or ""
    if not isinstance(text, str):
        _unfit(at, "its text is not a string")
    return {"type": "text", "text": text}


def _image_part(part: Json, at: str) -> Json:
    image = part.get("image_url")
    return _image(cast("Json", image).get("url") if isinstance(image, dict) else image, at)


def _image(url: Any, at: str) -> Json:
    """An image of a data: URI, bare base64 or an https address."""
    if not isinstance(url, str):
        _unfit(at, "the image has no URL")
    if url.startswith("https://"):
        return {"type": "image", "source": {"type": "url", "url": url}}
    kind, data = _decoded(url, at)
    for beginning, known in _BEGINNINGS.items():
        if data.startswith(beginning):
            kind = known
    if _ALIASES.get(kind, kind) not in _IMAGES:
        _unfit(at, f"an image of type {kind!r} is not taken; send JPEG, PNG, GIF or WebP")
    return _base64("image", _ALIASES.get(kind, kind), data)


def _file(part: Json, at: str) -> Json:
    file: Any = part.get("file")
    members = cast("Json", file) if isinstance(file, dict) else {}
    data = members.get("file_data")
    if not isinstance(data, str):
        _unfit(at, "a file is taken as file_data only, in base64; its id means nothing here")
    kind, data = _decoded(data, at)
    if kind in _IMAGES:
        return _base64("image", kind, data)
    if kind != _PDF and not data.startswith(_PDF_BEGINS):
        _unfit(at, f"a file of type {kind!r} is not taken; send a PDF, or its text")
    block = _base64("document", _PDF, data)
    if name := members.get("filename"):
        block["title"] = name
    return block


_PARTS: dict[str, Callable[[Json, str], Json]] = {
    "text": _text,
    "refusal": _text,
    "image_url": _image_part,
    "file": _file,
}


def _decoded(url: str, at: str) -> tuple[str, str]:
    """(media type, base64); the type of bare base64 is ""."""
    if not url.startswith("data:"):
        if ":" in url[:20]:
            _unfit(at, "only https addresses and data: URIs of base64 are taken")
        return "", url
    head, _, data = url[5:].partition(",")
    kind, *flags = head[:100].split(";")
    if "base64" not in flags or not data:
        _unfit(at, "its data: URI is not in base64")
    return kind.lower(), data


def _base64(block: str, kind: str, data: str) -> Json:
    return {"type": block, "source": {"type": "base64", "media_type": kind, "data": data}}


def _marked(blocks: list[Json], source: Json) -> list[Json]:
    """With the mark up to where the prompt shall be cached, as callers of Claude send it along."""
    if blocks and isinstance(source.get("cache_control"), dict):
        blocks[-1].setdefault("cache_control", source["cache_control"])
    return blocks


def _dicts(values: Any, at: str) -> Iterator[Json]:
    if not isinstance(values, list):
        _unfit(at, "this must be a list")
    for index, value in enumerate(cast("list[Any]", values)):
        if not isinstance(value, dict):
            _unfit(f"{at}[{index}]", "this must be an object")
        yield cast("Json", value)


def _unfit(at: str, why: str) -> NoReturn:
    raise InvalidRequest(f"{at}: {why}.", param="messages")
