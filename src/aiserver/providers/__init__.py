"""Which upstreams there are, what they serve, and which one takes a call."""
