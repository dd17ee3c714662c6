"""Encode a prompt and a picture into what the network reads."""
