"""The Lightning part: fit, moving average, checkpoints, logs."""
