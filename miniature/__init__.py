"""Train, check and export a small FramePack model in the layout of Hugging Face Hub checkpoints.

With it the program can be tried out without a GPU and without downloads.
"""
