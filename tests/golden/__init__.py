"""Replay reference vectors of the original FramePack through the program's code."""
