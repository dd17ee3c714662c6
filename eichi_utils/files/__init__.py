"""Read files under limits, since they may be hostile, and write them completely or not at all."""
