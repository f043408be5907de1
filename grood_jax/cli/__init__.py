"""The command lines behind the doors: what a user types, and what is printed."""
