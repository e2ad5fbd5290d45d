"""Judging a model: body masks, baselines, translated volumes, unconditional samples, and the report of either."""
