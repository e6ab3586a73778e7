"""Who is calling, and what that key may do."""

import msgspec

ADMIN_SCOPE = "Admin"


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """`key_id` is 0 for the administrator's secret and None for nobody."""

    key_id: int | None = None
    name: str = ""
    user_id: str | None = None
    user_name: str | None = None
    scopes: frozenset[str] = frozenset()
    restrict_to: frozenset[str] = frozenset()
    models: frozenset[str] = frozenset()

    @property
    def known(self) -> bool:
        return self.key_id is not None

    @property
    def is_admin(self) -> bool:
        return ADMIN_SCOPE in self.scopes

    def may_use(self, model: str) -> bool:
        """Whether the key's list of models lets it ask for this one; an empty list is no limit."""
        return not self.models or self.is_admin or model in self.models


ANYONE = Caller()
ADMINISTRATOR = Caller(key_id=0, name="Administrator", scopes=frozenset({ADMIN_SCOPE}))
