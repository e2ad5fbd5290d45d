"""The `medgen` command and `train.py`."""
