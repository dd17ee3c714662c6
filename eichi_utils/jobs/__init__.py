"""Run jobs one after another, keep what was run, and tell of it."""
