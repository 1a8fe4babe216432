"""Load a file as an `nn.Module` or an `ExportedProgram`, without running any of its code that is not trusted."""
