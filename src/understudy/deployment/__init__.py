"""Take a student out: one file that runs without PyTorch, checked against it."""
