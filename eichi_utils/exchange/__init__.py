"""Formats that other programs and people read and write."""
