"""How each kind of chat upstream is spoken to."""
