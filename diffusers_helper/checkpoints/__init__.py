"""Files of weights: which a model has, what they hold, and reading them."""
