"""Hold the application: requests, plans, jobs and files. Nothing here imports gradio.

Only what computes imports torch (most of `render`, a part of `models`, `exchange.latent_files`; tests/test_imports.py lists
it), so that `--help`, `--dry-run` and the pages answer at once.
"""
