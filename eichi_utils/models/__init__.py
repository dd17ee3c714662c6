"""Find and download models, decide what they need of memory and disk, and lend their networks from a pool."""
