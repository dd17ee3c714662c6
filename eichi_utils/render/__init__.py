"""A plan becomes files: one driver for all modes."""
