"""Training runs on disk, and the code that writes and reads them."""
