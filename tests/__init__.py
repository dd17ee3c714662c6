"""Test the program; the folders mirror the packages. `python -m tests.golden FOLDER` replays reference vectors."""
