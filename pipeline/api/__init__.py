"""clipsan from Python."""
