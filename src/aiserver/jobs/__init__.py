"""Jobs: work that outlives the call that asked for it, and the callbacks that report it."""
