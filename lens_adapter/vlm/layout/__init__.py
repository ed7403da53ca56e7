"""Where image tokens look."""
