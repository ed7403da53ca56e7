"""Every vision-language architecture of transformers in miniature, and what has to hold for each."""
