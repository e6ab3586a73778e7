"""Pictures: read, changed and written by libvips in a few limited child processes."""
