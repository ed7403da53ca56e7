"""How the mask decoder learns: whole, through LoRA, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

from peft import LoraConfig, LoraModel
from safetensors.torch import load_file, save
from torch import nn

from lens_adapter.errors import CheckpointMismatchError
from lens_adapter.sam.decoder import MaskDecoder
from lens_adapter.writing import written_aside

TUNINGS = ("full", "lora", "frozen")
FACTORS_FILE = "decoder_lora.safetensors"  # beside the optimizer's state in a checkpoint


class DecoderTuning:
    """What is done to the mask decoder of `decoder` while a training runs; `end` makes it a plain one again.

    Args:
        kind: "full": all of it learns; "lora": peft lays factors of `rank` over all its linear layers, and they alone
            learn; "frozen": nothing of it learns.
    """

    def __init__(self, decoder: MaskDecoder, kind: str = "full", rank: int = 8):
        self.decoder = decoder
        self.lora: LoraModel | None = None
        self._frozen = []
        if kind == "full":
            return
        self._frozen = [p for p in decoder.mask_decoder.parameters() if p.requires_grad]
        decoder.mask_decoder.requires_grad_(False)
        if kind == "lora":
            layers = [name for name, part in decoder.mask_decoder.named_modules() if isinstance(part, nn.Linear)]
            config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers)
            self.lora = LoraModel(decoder.mask_decoder, config, "default")

    def end(self) -> None:
        """Merge the factors into the mask decoder, and let what was frozen learn again. Twice is as good as once."""
        if self.lora is not None:
            vars(self.lora.merge_and_unload()).pop("peft_config", None)  # not every version of peft takes it along
            self.lora = None
        for parameter in self._frozen:
            parameter.requires_grad_(True)

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Inside, a plain mask decoder stands in: a copy with the factors merged, so that nothing here is rounded."""
        own = self.decoder.mask_decoder
        if self.lora is not None:
            self.decoder.mask_decoder = deepcopy(self.lora).merge_and_unload()
        try:
            yield
        finally:
            self.decoder.mask_decoder = own

    def save(self, checkpoint: str | Path) -> None:
        """Write what a resumed run needs beside the merged weights: the mask decoder and its factors, apart."""
        if self.lora is not None:
            state = {name: tensor.contiguous() for name, tensor in self.decoder.mask_decoder.state_dict().items()}
            with written_aside(Path(checkpoint, FACTORS_FILE)) as aside:
                aside.write_bytes(save(state))

    def load(self, checkpoint: str | Path) -> None:
        """Read what `save` wrote.

        Raises:
            CheckpointMismatchError: it was saved without factors, or with others.
        """
        if self.lora is None:
            return
        file = Path(checkpoint, FACTORS_FILE)
        if not file.is_file():
            raise CheckpointMismatchError(
                f"{checkpoint} holds no {FACTORS_FILE}: it was saved without decoder_tuning='lora', or with "
                "save_only_model. Resume as it was trained, or start anew from LensAdapter.from_pretrained(...)."
            )
        try:
            self.decoder.mask_decoder.load_state_dict(load_file(file))
        except RuntimeError as error:
            raise CheckpointMismatchError(f"{file} does not fit; resume with the same lora_rank. {error}") from error
