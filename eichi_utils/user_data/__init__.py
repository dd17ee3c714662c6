"""What belongs to the person: settings, presets, the LoRA folder, the log."""
