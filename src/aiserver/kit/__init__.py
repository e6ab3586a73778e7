"""What every room stands on: database, upstream connections, processes, logs, clock and ids."""
