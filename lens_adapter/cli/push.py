"""`lens-adapter push`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lens_adapter.cli.arguments import Commands, add_command, add_json_option
from lens_adapter.cli.outputs import require_files
from lens_adapter.cli.result import Result, note
from lens_adapter.errors import InputError

if TYPE_CHECKING:
    from lens_adapter.results import Evaluation


def add_to(commands: Commands) -> None:
    parser = add_command(
        commands,
        "push",
        run,
        help="publish a trained head on the Hugging Face Hub",
        description="""
        Checks a head's folder and uploads it in one commit: config, weights, model card and results. Other files of a
        training (optimizer states, logs) stay at home.

        Log in first with `hf auth login`, or set HF_TOKEN.""",
        examples="""
        lens-adapter push lens-llava me/lens-llava --license apache-2.0
        lens-adapter push lens-llava me/lens-llava --results refcoco.json --private --revision next""",
    )
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="what `train` wrote, or LensAdapter.save_pretrained"
    )
    parser.add_argument("repo_id", metavar="REPO_ID", help="owner/name; made if there is none")
    parser.add_argument(
        "--results",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="what `evaluate --json` wrote about these very weights: kept beside them, and shown in the card",
    )
    parser.add_argument(
        "--base-model",
        metavar="ID",
        help="owner/name of the frozen model on the Hub; needed where the head was made for a model in a folder",
    )
    parser.add_argument("--license", metavar="ID", help="for the card, e.g. apache-2.0; default: none is stated")
    parser.add_argument("--private", action="store_true", help="make a private repository, if it has to be made")
    parser.add_argument("--revision", metavar="BRANCH", help="default: main")
    parser.add_argument(
        "--token", metavar="TOKEN", help="default: that of `hf auth login`, or HF_TOKEN, where others do not see it"
    )
    parser.add_argument("--create-pr", action="store_true", help="propose the upload as a pull request")
    parser.add_argument("--message", metavar="TEXT", default="Upload LENS head", help="of the commit")
    add_json_option(parser)


def run(args: argparse.Namespace) -> Result:
    for file in args.results:
        if not file.is_file():
            raise InputError(f"The file {str(file)!r} cannot be read: there is none.")
    if not (args.folder / "config.json").is_file():
        raise InputError(f"{args.folder} must be a folder with config.json and model.safetensors; it holds no head.")
    require_files({"--json": args.json}, args.folder, args.results)
    from lens_adapter.adapter import LensAdapter
    from lens_adapter.hub.publishing import files_to_publish, findable, publish
    from lens_adapter.results import RESULTS_FILE, save_results

    kept = files_to_publish(args.folder)
    results = _results(args.folder, args.results)
    adapter = LensAdapter.from_pretrained(args.folder, local_files_only=True)  # complains about what does not fit
    base = findable(args.base_model or adapter.config.base_model_name_or_path)
    if results:
        save_results(args.folder, results)  # refuses those of another head
    for result in results:
        if result.head_sha256 is None:
            note(
                f"The record on {result.data_name()} does not say which weights it is about: the card says so, and its "
                "figures are no metadata. `lens-adapter evaluate --json` writes one that does."
            )
    commit = publish(
        args.folder,
        args.repo_id,
        commit_message=args.message,
        revision=args.revision,
        private=args.private or None,
        token=args.token,
        create_pr=args.create_pr,
        license=args.license,
        base_model=base,
    )
    sam = adapter.config.sam
    if not sam["include_image_encoder"] and sam["weights"] and Path(sam["weights"]).exists():
        note(
            f"Nobody else can find its SAM: its weights are {sam['weights']}, here alone. Others pass `sam` when they "
            'load the head; or save it with sam={..., "include_image_encoder": True}.'
        )
    left = sorted({path.name for path in args.folder.iterdir()} - {*kept, RESULTS_FILE})
    if left:
        note(f"Not part of a head, not uploaded: {', '.join(left)}")
    url = str(commit.pr_url or commit.repo_url)
    facts = {"url": url, "commit": commit.oid, "base_model": base, "not_uploaded": left}
    return Result(f"Published at {url}", facts)


def _results(folder: Path, files: Sequence[Path]) -> list[Evaluation]:
    """The records of some files; of a file with several, those that are about this head.

    Raises:
        InputError: there is none about it in such a file.
    """
    from lens_adapter.results import Evaluation, folder_digest

    results: list[Evaluation] = []
    for file in files:
        found = Evaluation.load_all(file)
        if len(found) > 1:
            own = [record for record in found if record.head_sha256 == folder_digest(folder)]
            if not own:
                raise InputError(f"{file} holds {len(found)} records, none of them about the weights in {folder}.")
            note(f"{file}: {len(found) - len(own)} of its {len(found)} records are about other heads, and left out.")
            found = own
        results += found
    return results
