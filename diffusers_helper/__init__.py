"""Provide the networks, the sampler and memory management; nothing here knows user files, settings or the application."""
