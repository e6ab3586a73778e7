"""Protocols in: HTTP becomes an operation, its answer goes back in that protocol's own shape."""
