"""Training runs: assembling one, its folder, a training step, the learning rate, and Lightning's callbacks."""
