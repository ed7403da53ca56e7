"""The web page of `lens-adapter app`. Only `page` needs gradio (the extra `app`)."""
