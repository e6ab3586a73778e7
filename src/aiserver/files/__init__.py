"""Files that callers sent: their bytes in a store of objects, their owners in a table."""
