"""Build and serve the pages; no other package imports gradio."""
