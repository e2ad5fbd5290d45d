"""Prior and measurement to posterior samples, without training again."""
