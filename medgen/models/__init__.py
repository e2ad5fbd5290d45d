"""Generative principles: p(x | condition), one file each."""
