"""Text and picture encoders: what a prompt and a picture are to the network."""
