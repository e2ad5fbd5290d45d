"""A brain phantom drawn from a seed: anatomy as fields in millimetres, MR and CT contrasts by their equations, a data source."""
