"""A small FramePack in the hub's layout, for trying the program out without a GPU and without downloads."""
