"""What must hold of files before anything is computed from them."""
