"""What runs, what was run, and what is told of it."""
