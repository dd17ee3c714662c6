"""What a page shows of jobs while they run."""
