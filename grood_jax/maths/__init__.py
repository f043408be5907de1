"""The equations, one a file: arrays in, arrays out."""
