"""Tasks: the rows and the output format of one task per file."""
