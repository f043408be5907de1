"""The one home of what is kept on disk."""
