"""How a reverse process is walked: one step() each, one loop."""
