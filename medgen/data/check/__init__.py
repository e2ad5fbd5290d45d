"""What is in the images of a manifest, and what is wrong with it."""
