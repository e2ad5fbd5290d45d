"""Networks. The only room that knows the number of spatial dimensions."""
