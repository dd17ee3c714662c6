"""The application: requests, plans, jobs and files. Nothing here imports gradio.

The upper half (request, plan and the three modes, events, view, jobs, metadata, pictures, paths) imports no torch either,
so that `--help`, `--dry-run` and the pages answer at once.
"""
