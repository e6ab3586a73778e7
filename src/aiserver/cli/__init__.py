"""The command line: everything an operator does from a shell."""
