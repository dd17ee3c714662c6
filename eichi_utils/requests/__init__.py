"""Hold requests and their plans: what a user asks for, whether it can be made, and how; without side effects and torch."""
