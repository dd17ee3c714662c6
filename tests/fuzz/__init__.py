"""Files that nobody would make: every reader of the program on mutations of good ones; see __main__.py."""
