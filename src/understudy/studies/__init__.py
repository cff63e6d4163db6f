"""Compare methods such that the answer can be believed: paired seeds, equal budgets, intervals."""
