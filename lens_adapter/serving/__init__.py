"""Masks for other programs: what `lens-adapter serve` and the handler of an Inference Endpoint share.

`requests` says what a request holds and what is answered; `batching` asks the model about several at a time; `server`
speaks HTTP. Only `server` needs starlette and uvicorn (the extra `serve`).
"""
