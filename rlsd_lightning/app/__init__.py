"""A page in the browser to try reconstructions on; its runs are those of the command line, which it is given."""
