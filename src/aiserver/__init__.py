"""AI Server: one URL and one key for every AI an organisation has."""

__version__ = "0.1.0"
