"""Methods, each a script that reads like its paper's algorithm."""
