"""Fuzz every reader of the program with mutations of good files; see __main__.py."""
