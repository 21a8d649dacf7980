"""Where the files of two artifacts differ: by row, by tensor, by key, else by line or byte."""
