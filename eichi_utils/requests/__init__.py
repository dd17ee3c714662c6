"""Requests and their plans: what a user asks for, whether it can be made, and how. Pure, without torch."""
