"""From a file to an `nn.Module` or an `ExportedProgram`, without running anything of the file's that is not trusted."""
