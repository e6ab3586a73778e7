"""What was called: every call in monthly files, and what they add up to."""
