"""`lens-adapter serve`."""

from __future__ import annotations

import argparse
from functools import partial

from lens_adapter.cli.arguments import (
    Commands,
    add_command,
    add_device_options,
    add_model_options,
    count,
    pair_of,
    port,
    require_name,
)
from lens_adapter.cli.loading import checked_device, loaded_adapter
from lens_adapter.cli.ports import free_port
from lens_adapter.cli.result import note
from lens_adapter.errors import LensError
from lens_adapter.serving.bounds import BATCH_SIZE, COLLECTING, MOST_HELD


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "serve",
        run,
        help="answer other programs over HTTP: a picture and prompts in, masks out",
        description="""
        Serves masks as JSON at POST /, with the requests and answers of a Hugging Face Inference Endpoint
        (examples/endpoint of the repository), until SIGTERM: then it answers what it has accepted, and ends with exit
        code 0. GET /health says that it lives, GET /ready that the model is loaded. Needs starlette and uvicorn: pip
        install 'lens_adapter[serve]'.

        Requests that come at the same time run together. Who finds no room is told to come again (503).""",
        examples="""
        lens-adapter serve --model builtin
        lens-adapter serve --model llava-hf/llava-1.5-7b-hf --adapter org/lens-llava-1.5-7b --device cuda --port 8080

        Asking it:
        curl localhost:8000 -d '{"inputs": "'$(base64 -w0 photo.jpg)'", "parameters": {"prompts": ["a dog"]}}'

        What requests and answers hold:
        python -m pydoc lens_adapter.serving.requests""",
    )
    add_model_options(parser)
    add_device_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: for other machines, too; default: %(default)s")
    parser.add_argument(
        "--port", type=port, default=8000, metavar="N", help="0: any that is free; default: %(default)s"
    )
    parser.add_argument(
        "--batch-size",
        type=count,
        default=BATCH_SIZE,
        metavar="N",
        help="prompts that run together, of several requests too; default: %(default)s",
    )
    parser.add_argument(
        "--collecting",
        type=count,
        default=round(1000 * COLLECTING),
        metavar="MS",
        help="milliseconds that a request waits for others to run with; default: %(default)s",
    )
    parser.add_argument(
        "--most-held",
        type=count,
        default=MOST_HELD,
        metavar="N",
        help="requests that may arrive, wait and be worked on at the same time; default: %(default)s",
    )


def run(args: argparse.Namespace) -> None:
    model, head = pair_of(args)
    require_name("--model", model)
    require_name("--adapter", head)
    try:
        from lens_adapter.serving.server import serve
    except ModuleNotFoundError as error:
        raise LensError(f"The server needs {error.name}. Install it: pip install 'lens_adapter[serve]'") from error

    device, number = checked_device(args.device), free_port(args.host, args.port, "The server")
    note(f"Serving at http://{args.host}:{number}")
    served = serve(
        partial(loaded_adapter, model, head, args.dtype, device),
        host=args.host,
        port=int(number or 0),
        batch_size=args.batch_size,
        collecting=args.collecting / 1000,
        most_held=args.most_held,
    )
    note(f"Answered {served.answered} of {served.accepted} requests that were accepted.")
