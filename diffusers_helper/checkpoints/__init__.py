"""Read checkpoints: which files of weights a model has, what they hold, and their tensors."""
