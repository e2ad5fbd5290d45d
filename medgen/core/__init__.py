"""Types, protocols, random numbers, geometry and the stateless mathematics that several rooms share."""
