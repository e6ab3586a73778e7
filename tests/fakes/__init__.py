"""Servers of our own that stand in for what AI Server talks to."""
