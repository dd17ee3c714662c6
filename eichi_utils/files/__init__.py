"""The disk, without trust: reading under limits, writing whole or not at all."""
