"""The command line: `eichi ...`, one file a command."""
