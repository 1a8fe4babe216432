"""Many checkpoints in one run: a work list, workers that may crash, a journal that survives, a summary."""
