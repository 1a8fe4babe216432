"""Many checkpoints in one go: a work list, workers that can die, a journal that survives, a summary."""
