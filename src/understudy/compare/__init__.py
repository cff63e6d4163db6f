"""Compare finished runs: one typed table, with the verdict on every distilled student."""
