"""The parts of a page, each with its controls and what they do."""
