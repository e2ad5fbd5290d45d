"""Tensors to numbers: pixel fidelity, feature distances, intervals. Nothing here knows where the tensors came from."""
