"""Work that outlives its call: operations are queued here, and jobs run here by their handlers."""
