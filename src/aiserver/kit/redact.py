"""Takes secrets out of text on its way to any sink: logs, errors, the command line's output."""

import re

MASK = "***"

_SHAPES = (
    # Vendors' key forms and our own, wherever they stand.
    re.compile(r"\b(?:ak-[0-9a-fA-F]{32}|as-[A-Za-z0-9_-]{32,})|\bwhsec_[A-Za-z0-9+/=_-]{16,}"),
    re.compile(r"\b(?:sk|gsk|pk|rk|xai|r8|hf|AIza)[-_]?[A-Za-z0-9_-]{20,}"),
    # Whatever follows a name that promises a secret: headers, query items, JSON members.
    re.compile(
        r"(?i)(?<=\bauthorization)(?:\W{1,4}(?:bearer|basic|token)?\s*)[^\s\"',;&]+"
        r"|(?<=\bbearer )[^\s\"',;&]+"
    ),
    re.compile(
        r"(?i)((?:api[-_]?key|authsecret|auth_secret|password|access[-_]?token|[?&]key)"
        r"[\"']?\s*[:=]\s*[\"']?)[^\s\"',;&}]+"
    ),
)


class Redactor:
    """Masks what looks like a secret, and every secret it was told of."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._pattern: re.Pattern[str] | None = None

    def learn(self, secret: str) -> None:
        """From now on this exact text is masked. Short text is refused: it would mask words."""
        if len(secret) < 8 or secret in self._known:
            return
        self._known.add(secret)
        longest_first = sorted(self._known, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def __call__(self, text: str) -> str:
        if self._pattern is not None:
            text = self._pattern.sub(MASK, text)
        for shape in _SHAPES:
            text = shape.sub(_mask, text)
        return text


def _mask(match: re.Match[str]) -> str:
    name = match[1] if match.re.groups else ""
    return f"{name}{MASK}" if name else (f" {MASK}" if match[0][:1] in " :=\"'" else MASK)
