"""A chest phantom drawn from a seed: anatomy as fields in millimetres, CT in Hounsfield units with its noise, a data source."""
