"""LoRA: state dict in, state dict out. Knows neither the application nor the networks."""
