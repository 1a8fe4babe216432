"""What the command line shows and reads: options, terminal, tables, progress, signals."""
