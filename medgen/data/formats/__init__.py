"""One file per format. A module here that defines `FORMAT` is a format that medgen reads; nothing else is edited."""
