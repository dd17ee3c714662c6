"""Tests of the networks, the sampler and what surrounds them."""
