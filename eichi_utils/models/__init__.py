"""Models: where they come from, what they need, and the pool that lends their networks."""
