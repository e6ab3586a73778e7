"""What a callback says of files and texts that a job made, with addresses in full."""

from typing import Any

import msgspec

_decode = msgspec.json.Decoder(list[dict[str, Any]]).decode
_MADE = {"outputs": ("fileName", "url", "outputFormat"), "textOutputs": ("text",)}


def outputs_of(results: msgspec.Raw, *, base: str) -> dict[str, list[dict[str, Any]]] | None:
    """`outputs` and `textOutputs` of an answer's `results`; None for what is no such list.

    `base` goes before addresses that are paths of this server.
    """
    try:
        items = _decode(results)
    except msgspec.DecodeError:
        return None
    found = {name: [_only(item, known) for item in items] for name, known in _MADE.items()}
    made = {name: [item for item in items if item] for name, items in found.items()}
    for output in made["outputs"]:
        if isinstance(url := output.get("url"), str):
            output["url"] = absolute(url, base=base)
    return {name: items for name, items in made.items() if items} or None


def absolute(url: str, *, base: str) -> str:
    """A path of this server with what it is reached by; other addresses as they are."""
    is_path = url.startswith("/") and not url.startswith("//")
    return base.rstrip("/") + url if is_path else url


def _only(item: dict[str, Any], known: tuple[str, ...]) -> dict[str, Any]:
    return {name: item[name] for name in known if item.get(name) is not None}
