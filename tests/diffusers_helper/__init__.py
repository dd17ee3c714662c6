"""Test the networks, the sampler, and what loads, places and decodes for them."""
