"""Queue jobs, run them one after another, remember them, and tell pages, log and alarm what happens."""
