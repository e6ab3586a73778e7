"""Icons of model families: a tile with letters, drawn here so that no maker's logo is copied."""

_FAMILIES: tuple[tuple[str, str, str], ...] = (
    ("gpt o1 o3 o4 text-embedding", "Gp", "#3f6f5f"),
    ("claude", "Cl", "#a85d38"),
    ("gemini", "Ge", "#3b66c4"),
    ("gemma codegemma embeddinggemma functiongemma", "Gm", "#4b57b5"),
    ("llama codellama tinyllama phind yarn", "Ll", "#2f5fa8"),
    ("mistral mixtral ministral magistral devstral", "Mi", "#a8481f"),
    ("codestral mathstral pixtral", "Mi", "#a8481f"),
    ("qwen qwq codeqwen", "Qw", "#6442b5"),
    ("deepseek", "De", "#3453b8"),
    ("phi", "Ph", "#1f7391"),
    ("command aya", "Co", "#356d57"),
    ("grok", "Gk", "#3d3d45"),
    ("glm codegeex", "Gl", "#3a4a9f"),
    ("kimi", "Ki", "#27364f"),
    ("minimax", "Mm", "#a83757"),
    ("nova", "No", "#86570f"),
    ("yi", "Yi", "#2e6b3e"),
    ("granite", "Gr", "#33508c"),
    ("nemotron", "Ne", "#47750f"),
    ("falcon", "Fa", "#6a4a8c"),
    ("starcoder dolphincoder codeup codebooga magicoder wizardcoder deepcoder", "Cd", "#4f5b66"),
    ("sqlcoder duckdb", "Sq", "#5b5170"),
    ("llava bakllava moondream", "Lv", "#7a4a52"),
    ("dolphin tinydolphin megadolphin", "Do", "#1e6a8a"),
    ("nous hermes", "Nh", "#5a5a2a"),
    ("wizard", "Wi", "#5f3f86"),
    ("stable", "St", "#6b3f6f"),
    ("smollm", "Sm", "#77641a"),
    ("olmo tulu", "Ol", "#8a3f6a"),
    ("nomic mxbai all-minilm bge", "Em", "#43606b"),
)
_OPEN = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">'
_TILE = '<rect width="64" height="64" rx="14" fill="{colour}"/>'
_LETTERS = (
    '<text x="32" y="42" font-family="system-ui,sans-serif" font-size="28" font-weight="600"'
    ' text-anchor="middle" fill="#fff">{letters}</text></svg>'
)
_GENERIC = (
    _OPEN
    + _TILE.format(colour="#59636e")
    + '<path d="M20 42 32 20l12 22Z" fill="none" stroke="#fff" stroke-width="3"/>'
    '<g fill="#fff"><circle cx="32" cy="20" r="6"/><circle cx="20" cy="42" r="6"/>'
    '<circle cx="44" cy="42" r="6"/></g></svg>'
).encode()


def _drawn() -> dict[str, bytes]:
    return {
        start: (_OPEN + _TILE.format(colour=colour) + _LETTERS.format(letters=letters)).encode()
        for starts, letters, colour in _FAMILIES
        for start in starts.split()
    }


_ICONS = _drawn()


def icon_of(model: str) -> bytes:
    """The SVG of the family that the name begins with; nothing of the name is drawn."""
    name = model.rpartition("/")[2].casefold()
    known = max((start for start in _ICONS if name.startswith(start)), key=len, default=None)
    return _ICONS[known] if known else _GENERIC
