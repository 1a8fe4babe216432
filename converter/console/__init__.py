"""The command line's input and output: options, terminal, tables, progress, signals."""
