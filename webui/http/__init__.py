"""What every request passes before a page sees it: doors, login, bodies, connections."""
