"""Show a page's user what is happening: progress, preview, queue, history, and the timeline of a film's sections."""
