"""What pictures, video, sound and large files cost, beside the programs that do only that."""
