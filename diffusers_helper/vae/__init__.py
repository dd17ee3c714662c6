"""Pictures and films to latents and back."""
