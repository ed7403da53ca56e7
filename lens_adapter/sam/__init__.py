"""SAM as the mask decoder."""
