"""Define the packed FramePack transformer and its parts."""
