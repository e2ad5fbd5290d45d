"""Networks of other libraries behind medgen's network protocol."""
