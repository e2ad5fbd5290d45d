"""How a machine measures: linear maps and their adjoints."""
