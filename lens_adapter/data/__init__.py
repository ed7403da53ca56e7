"""Data: what heads are trained and measured on."""
