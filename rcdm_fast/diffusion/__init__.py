"""The process itself: schedule, noise, solvers, conditions, and requests that are run batch by batch."""
