"""Read LoRA files and turn them into updates of weights; nothing here knows the application or the networks."""
