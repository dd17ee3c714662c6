"""Encode pictures to latents, and decode latents to frames."""
