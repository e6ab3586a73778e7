"""The language operations are written in; imports nothing of the product."""
