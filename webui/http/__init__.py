"""Check every HTTP request before a page sees it: connections, host and origin, login, size of the body, file paths."""
