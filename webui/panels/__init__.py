"""Build the parts of a page: each module adds its controls and handles their events."""
