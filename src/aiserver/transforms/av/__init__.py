"""Audio and video: what a caller asks becomes an ffmpeg command, run in a limited child."""
