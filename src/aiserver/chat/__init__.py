"""Chat: the operations, who answers them, and how each upstream is spoken to."""
