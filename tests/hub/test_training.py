"""`LensTrainer` pushes while it trains and when it has."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard

from lens_adapter import LensAdapter
from tests.hub.server import OWNER
from tests.tiny.training import make_trainer, same_weights

HEAD = "me/lens"


def pushing(folder: Path, **options: object):
    settings = {"push_to_hub": True, "hub_model_id": HEAD, "hub_token": OWNER, "max_steps": 2}
    return make_trainer(folder, **{**settings, "save_strategy": "steps", "save_steps": 1, **options})


@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "end"])
def test_pushing_while_it_trains(hub, tmp_path, monkeypatch, strategy):
    monkeypatch.delenv("HF_TOKEN")  # the token of the arguments is enough
    trainer = pushing(tmp_path, hub_strategy=strategy, hub_private_repo=True)
    trainer.train()
    trainer.push_to_hub(license="mit", blocking=True)
    repository = hub.repositories[HEAD]
    early = [message for message in repository.messages if message.startswith("Training in progress")]
    assert bool(early) == (strategy != "end") and repository.messages[-1] == "End of training" and repository.private
    commits = list(repository.commits.values())
    for files in commits[1:]:
        card = ModelCard(files["README.md"].decode())
        assert 'from_pretrained("me/lens")' in card.text and "| steps |" in card.text
    assert card.data.license == "mit" and "| steps | 2 |" in card.text
    assert ("last-checkpoint/optimizer.pt" in commits[-1]) == (strategy == "checkpoint")
    monkeypatch.setenv("HF_TOKEN", OWNER)
    same_weights(LensAdapter.from_pretrained(HEAD), trainer.adapter)
    assert not any(OWNER.encode() in content for files in commits for content in files.values())


def test_the_last_word_about_a_card_is_its_authors(hub, tmp_path):
    hub.create(HEAD)
    HfApi().upload_file(path_or_fileobj=b"---\nlicense: mit\n---\nMine.", path_in_repo="README.md", repo_id=HEAD)
    trainer = pushing(tmp_path / "a", max_steps=1)
    trainer.train()
    trainer.push_to_hub(blocking=True)
    assert hub.files(HEAD)["README.md"] == b"---\nlicense: mit\n---\nMine." and "model.safetensors" in hub.files(HEAD)


def test_without_a_repository_there_is_nothing_to_train_for(hub, tmp_path):
    with pytest.raises(OSError, match="403"):
        pushing(tmp_path, hub_model_id="stranger/lens")
