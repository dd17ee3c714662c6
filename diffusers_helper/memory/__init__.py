"""Move a network's weights between files, the computer's memory and the card."""
