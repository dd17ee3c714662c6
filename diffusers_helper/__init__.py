"""Networks, sampler and memory: no files of the user's, no settings, nothing of the application."""
