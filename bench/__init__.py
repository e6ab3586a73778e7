"""Benchmarks: what the gateway costs, beside a peer in the same run."""
