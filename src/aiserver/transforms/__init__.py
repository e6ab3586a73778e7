"""Image, audio and video transforms of files, run as jobs on this machine."""
