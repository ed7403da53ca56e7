"""Heads go to the Hub and come back, through the real client."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError

from lens_adapter import LensAdapter
from lens_adapter.errors import HubError, InputError
from lens_adapter.hub.publishing import publish
from tests.hub.conftest import PATIENT, offline
from tests.hub.server import READER, STRANGER, LocalHub
from tests.tiny.adapters import learn, same_output, tiny_trio
from tests.tiny.sam import noise_image

FILES = {".gitattributes", "README.md", "config.json", "model.safetensors"}
HEAD, COMMIT = "me/lens", r"POST .*/commit/"


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of a saved head."""
    return Path(shutil.copytree(saved, tmp_path / "head"))


def count(hub: LocalHub, start: str) -> int:
    return sum(request.startswith(start) for request in hub.requests)


# -- there and back


@pytest.mark.parametrize("part_size", [1 << 30, 40_000])
def test_there_and_back(hub, part_size):
    hub.part_size = part_size
    adapter, model, processor = tiny_trio()
    learn(adapter, processor)
    commit = adapter.push_to_hub(HEAD, commit_message="First", private=True)
    assert commit.commit_url.startswith(f"{hub.url}/{HEAD}/commit/") and hub.repositories[HEAD].private
    assert hub.files(HEAD).keys() == FILES and hub.repositories[HEAD].messages == ["initial commit", "First"]
    assert count(hub, "PUT /lfs/") == -(-len(hub.files(HEAD)["model.safetensors"]) // part_size)
    loaded = LensAdapter.from_pretrained(HEAD).attach(model, processor)
    image, prompts = noise_image(50, 70), ["the cat", "a dog on the left"]
    one, two = (head.segment(image, prompts, return_logits=True) for head in (adapter, loaded))
    one.image = two.image = None
    assert same_output(one, two)


def test_the_card_names_the_repository(hub, folder):
    publish(folder, "lens", license="apache-2.0")
    card = ModelCard(hub.files(HEAD)["README.md"].decode())
    assert 'LensAdapter.from_pretrained("me/lens")' in card.text and card.data.license == "apache-2.0"
    assert str(folder) not in card.text


@pytest.mark.skipif(not PATIENT, reason="0.36 asks huggingface.co whatever the endpoint")
def test_the_hub_finds_no_fault_with_the_card(hub, folder):
    publish(folder, HEAD)
    ModelCard.load(HEAD).validate()
    assert count(hub, "POST /api/validate-yaml") == 2


def test_save_pretrained_can_push(hub, tmp_path):
    tiny_trio()[0].save_pretrained(tmp_path / "lens", push_to_hub=True, commit_message="Saved", private=True)
    assert hub.files(HEAD).keys() == FILES and hub.repositories[HEAD].messages[-1] == "Saved"
    assert 'from_pretrained("me/lens")' in hub.files(HEAD)["README.md"].decode()


def test_branches_tags_of_time_and_pull_requests(hub, folder):
    first = publish(folder, HEAD).oid
    tiny_trio(keypoint_threshold=0.7)[0].push_to_hub(HEAD, revision="sharper")
    for revision, threshold in (("main", 0.4), ("sharper", 0.7), (first, 0.4)):
        assert LensAdapter.from_pretrained(HEAD, revision=revision).config.keypoint_threshold == threshold
    pull = tiny_trio(keypoint_threshold=0.9)[0].push_to_hub(HEAD, create_pr=True)
    assert pull.pr_url == f"{hub.url}/{HEAD}/discussions/1" and pull.pr_revision == "refs/pr/1"
    assert LensAdapter.from_pretrained(HEAD).config.keypoint_threshold == 0.4
    assert LensAdapter.from_pretrained(HEAD, revision="refs/pr/1").config.keypoint_threshold == 0.9


def test_somebody_elses_repository_takes_pull_requests_only(hub, folder):
    publish(folder, HEAD)
    with pytest.raises(HubError, match=r"failed.*403.*Use a token that may write there"):
        publish(folder, HEAD, token=STRANGER)
    proposal = publish(folder, HEAD, token=STRANGER, create_pr=True, license="gpl-3.0")
    assert proposal.pr_revision == "refs/pr/1" and b"gpl-3.0" in hub.files(HEAD, "refs/pr/1")["README.md"]
    assert b"gpl-3.0" not in hub.files(HEAD)["README.md"]


def test_subfolder(hub, folder):
    hub.create(HEAD)
    HfApi().upload_folder(repo_id=HEAD, folder_path=folder, path_in_repo="heads/lite")
    loaded = LensAdapter.from_pretrained(HEAD, subfolder="heads/lite")
    torch.testing.assert_close(loaded.state_dict(), LensAdapter.from_pretrained(folder).state_dict())


# -- what is in the repository


def test_only_what_belongs_to_a_head_is_uploaded(hub, folder):
    for name in ("training_args.bin", "optimizer.pt", "notes.txt", "overlay.png"):
        (folder / name).write_bytes(b"1")
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "model.safetensors").write_bytes(b"1")
    publish(folder, HEAD)
    assert hub.files(HEAD).keys() == FILES | {"overlay.png"}


def test_nothing_of_an_earlier_checkpoint_stays_in_the_repository(hub, folder):
    files = hub.create(HEAD).commits[hub.repositories[HEAD].branches["main"]]
    index = {"weight_map": {"head": "model-00001-of-00002.safetensors"}}
    files |= {"model-00001-of-00002.safetensors": b"1", "model.safetensors.index.json": json.dumps(index).encode()}
    files |= {"evaluation.json": b"{}", ".eval_results/lens_adapter-x-y.yaml": b"", ".eval_results/theirs.yaml": b""}
    files |= {"notes.txt": b"", "other/model.safetensors": b""}
    publish(folder, HEAD)
    assert hub.files(HEAD).keys() == FILES | {"notes.txt", "other/model.safetensors", ".eval_results/theirs.yaml"}
    assert hub.repositories[HEAD].messages == ["initial commit", "Upload LENS head"]


def test_pushing_the_same_again_is_no_commit(hub, folder):
    assert publish(folder, HEAD).oid == publish(folder, HEAD).oid
    assert hub.repositories[HEAD].messages == ["initial commit", "Upload LENS head"]


def test_cards_that_somebody_wrote(hub, folder):
    publish(folder, HEAD)
    ours = hub.files(HEAD)["README.md"]
    HfApi().upload_file(path_or_fileobj=ours + b"And mine.\n", path_in_repo="README.md", repo_id=HEAD)
    tiny_trio(keypoint_threshold=0.7)[0].push_to_hub(HEAD)
    assert hub.files(HEAD)["README.md"] == ours + b"And mine.\n"
    assert json.loads(hub.files(HEAD)["config.json"])["keypoint_threshold"] == 0.7
    (folder / "README.md").write_text("---\nlicense: mit\n---\nWritten at home.")
    publish(folder, HEAD)
    assert hub.files(HEAD)["README.md"].endswith(b"Written at home.")


def test_ours_is_written_anew_and_metadata_that_the_website_made_are_kept(hub, saved):
    files = hub.create(HEAD).commits[hub.repositories[HEAD].branches["main"]]
    files["README.md"] = b"---\nlicense: gemma\n---\n"
    adapter = LensAdapter.from_pretrained(saved)
    adapter.add_model_tags(["cats"])
    adapter.push_to_hub(HEAD)
    data = ModelCard(hub.files(HEAD)["README.md"].decode()).data
    assert data.license == "gemma" and "cats" in data.tags and len(data.tags) == len(set(data.tags))
    adapter.config.num_keypoints = 5
    adapter.push_to_hub(HEAD)
    assert "up to 5" in hub.files(HEAD)["README.md"].decode()


# -- what is refused


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (lambda folder: (folder / "config.json").unlink(), "must be a folder with config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "must be a folder with config.json"),
        (shutil.rmtree, "must be a folder with config.json"),
        (lambda folder: (folder / "README.md").write_text("---\na: [\n---\nMine."), "metadata .* cannot be read"),
        (lambda folder: (folder / "README.md").write_text("---\n- a\n---\nMine."), "metadata .* cannot be read"),
        (lambda folder: (folder / "evaluation.json").write_text("{"), "evaluation.json is damaged"),
    ],
)
def test_what_is_no_head_is_refused_before_anything_is_sent(hub, folder, damage, complaint):
    damage(folder)
    with pytest.raises(InputError, match=complaint):
        publish(folder, HEAD)
    assert not hub.requests


def test_metadata_that_the_hub_refuses(hub, folder):
    (folder / "README.md").write_text("---\nbase_model: /home/me/llava\n---\nMine.")
    with pytest.raises(HubError, match=r'Invalid metadata in README.md. - "base_model" with value "/home/me/llava"'):
        publish(folder, HEAD)
    assert hub.files(HEAD).keys() == {".gitattributes"}


@pytest.mark.parametrize("name", ["me/lens/lite", "me/-lens", "a b", ""])
def test_names_that_are_none(hub, folder, name):
    with pytest.raises(InputError, match="no repository of the Hub"):
        publish(folder, name)
    assert not hub.requests


@pytest.mark.parametrize("token, complaint", [
    (False, "401.*Log in with `hf auth login`"),
    ("hf_wrong", "401.*Log in with `hf auth login`"),
    (READER, "403.*Use a token that may write there"),
    (STRANGER, "403.*Use a token that may write there"),
])  # fmt: skip
def test_who_may_not_write(hub, folder, token, complaint):
    with pytest.raises(HubError, match=complaint) as caught:
        publish(folder, HEAD, token=token)
    assert HEAD in str(caught.value) and "\n" not in str(caught.value) and HEAD not in hub.repositories


# -- trouble on the way up


@pytest.mark.parametrize("where", [r"PUT /lfs/", r"POST .*/preupload/", r"POST .*\.git/info/lfs"])
def test_a_connection_that_drops_is_tried_again(hub, folder, naps, where):
    hub.fail(where, drop_after=20_000 if "PUT" in where else 10, times=2)
    if not PATIENT and "POST" in where:
        for _ in range(2):
            with pytest.raises(HubError, match=r"no half of it.*Try again later"):
                publish(folder, HEAD)
    publish(folder, HEAD)
    assert hub.files(HEAD).keys() == FILES and all(fault.times == 0 for fault in hub.faults)
    assert hub.files(HEAD)["model.safetensors"] == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "fault",
    [{"drop_after": 20_000}, {"status": 500}, {"status": 429, "headers": {"Retry-After": "7"}}],
)
def test_a_hub_that_stays_broken_gets_a_whole_checkpoint_or_none(hub, folder, naps, fault):
    publish(folder, HEAD)
    before = hub.files(HEAD)
    hub.fail(r"PUT /lfs/", times=99, **fault)
    adapter = LensAdapter.from_pretrained(folder)
    adapter.head.descriptors.text_vector.data += 1
    with pytest.raises(HubError, match=r"failed; the repository holds no half of it\. .+ Try again later") as caught:
        adapter.push_to_hub(HEAD)
    assert "\n" not in str(caught.value)
    assert hub.files(HEAD) == before and hub.repositories[HEAD].messages[1:] == ["Upload LENS head"]
    hub.faults.clear()
    adapter.push_to_hub(HEAD)
    assert hub.files(HEAD)["model.safetensors"] != before["model.safetensors"]


@pytest.mark.parametrize("fault", [{"drop_after": 100}, {"status": 500}])
def test_a_commit_that_fails_leaves_nothing(hub, folder, naps, fault):
    hub.fail(COMMIT, times=99, **fault)
    with pytest.raises(HubError, match="no half of it"):
        publish(folder, HEAD)
    assert hub.files(HEAD).keys() == {".gitattributes"}


@pytest.mark.skipif(not PATIENT, reason="0.36 gives up at once")
def test_waiting_as_long_as_the_hub_asks(hub, folder, naps):
    hub.fail(r"PUT /lfs/", status=429, headers={"Retry-After": "7"})
    publish(folder, HEAD)
    assert naps == [8.0] and hub.files(HEAD).keys() == FILES  # a second more, says huggingface_hub


def test_nobody_there(hub, folder, naps):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(HubError, match="Try again later"):
        publish(folder, HEAD)


def test_offline(hub, folder, monkeypatch):
    offline(monkeypatch, True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        publish(folder, HEAD)


def test_what_is_no_trouble_of_the_hub_is_not_hidden(hub, folder, monkeypatch):
    assert issubclass(HubError, ValueError) and not issubclass(HubError, HfHubHTTPError)
    monkeypatch.setattr(HfApi, "create_commit", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        publish(folder, HEAD)
