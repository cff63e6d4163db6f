"""Look inside trained detectors: the swap test."""
