"""Small random models and processors of real transformers classes, for the tests."""
