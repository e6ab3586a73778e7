"""The job queue: its speed beside other queues on the same PostgreSQL, its waits, rest and memory."""
