"""Test the small checkpoints."""
