"""Tests of the small checkpoints."""
