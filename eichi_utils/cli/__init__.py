"""Hold the command line, `eichi ...`, with one file per command."""
