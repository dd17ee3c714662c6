"""The packed FramePack transformer and its parts."""
