"""Writes the documentation pages that are made from code; --check fails when one is stale."""

import sys
from pathlib import Path

from aiserver.settings import SETTINGS

ROOT = Path(__file__).parent.parent


def settings_page() -> str:
    rows = [
        f"| `{setting.name}`{_also(setting.aliases)} | {setting.default or '-'} | {setting.help} |"
        for setting in SETTINGS
    ]
    return "\n".join(
        [
            "# Settings",
            "",
            "A flag wins over an environment variable, that over `ai-server.toml`, that over the",
            "default. `NAME_FILE` reads the value from a file, for Docker secrets. An unknown name",
            "in the file stops the start. `ai-server config check` shows what is in force.",
            "",
            "| Environment | Default | Meaning |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _also(aliases: tuple[str, ...]) -> str:
    return "".join(f", `{alias}`" for alias in aliases)


PAGES = {"docs/settings.md": settings_page}


def main() -> int:
    check = "--check" in sys.argv
    stale: list[str] = []
    for name, write in PAGES.items():
        path = ROOT / name
        text = write()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"Stale: {', '.join(stale)}. Run `make format`.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
