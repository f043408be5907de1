"""Images in, outputs out: each image once, over devices and processes."""
