"""Keep what belongs to the user: settings, presets, the LoRA folder, the log."""
