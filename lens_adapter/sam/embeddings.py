"""Image embeddings kept between calls: asking about the same image again does not encode it again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from threading import Lock
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from lens_adapter.errors import InputError
from lens_adapter.sam.decoder import MaskDecoder


class EmbeddingCache:
    """The embeddings of the images used last, on the decoder's own device, by the images' content.

    They are those of one image encoder in one state: whatever changes its weights, dtype or device empties the cache.
    Copies and pickles of a cache are empty; threads may share one.

    Args:
        max_bytes: the embeddings used longest ago go when there are more; 0 keeps none. One of SAM's takes 4 MiB in
            float32, one of SAM 2's 16 MiB.

    Raises:
        InputError: `max_bytes` is no such number.
    """

    def __init__(self, max_bytes: int = 64 * 2**20) -> None:
        if not isinstance(max_bytes, int) or max_bytes < 0:
            raise InputError(f"EmbeddingCache: max_bytes must be an integer of at least 0; got {max_bytes!r}.")
        self.max_bytes = max_bytes
        self._lock = Lock()
        self._entries: OrderedDict[bytes, Tensor] = OrderedDict()
        self._maker: Any = None  # what tells the encoder's state apart

    def __reduce__(self) -> tuple[Any, ...]:
        return EmbeddingCache, (self.max_bytes,)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """What the kept embeddings take."""
        with self._lock:
            return self._nbytes()

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def encode(self, decoder: MaskDecoder, images: Sequence[Image | Tensor]) -> list[Tensor]:
        """Embeddings (E, g, g) of images, as `decoder.encode_images` takes and makes them; the new ones in one batch.

        Images are the same if they are at the size that the encoder sees.

        Raises:
            InputError: an image that the decoder does not take.
            LensError: its image encoder was not loaded.
        """
        maker = _state_of(decoder.encoding)
        shrunk = [decoder.shrink(image) for image in images]
        keys = [_content(colors) for colors in shrunk]
        with self._lock:
            if maker != self._maker:
                self._entries.clear()
                self._maker = maker
            found = {key: self._entries[key] for key in keys if key in self._entries}
        new = {key: colors for key, colors in zip(keys, shrunk, strict=True) if key not in found}
        if new:
            with torch.inference_mode(False):  # what is kept must be of use outside of it, too
                encoded = decoder.encode_images(new.values())
                found |= {key: one.clone() for key, one in zip(new, encoded, strict=True)}  # not views of the batch
        with self._lock:
            if maker == self._maker:
                for key in keys:
                    self._entries[key] = found[key]
                    self._entries.move_to_end(key)
                while self._nbytes() > self.max_bytes:
                    self._entries.popitem(last=False)
        return [found[key] for key in keys]

    def _nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries.values())


def _content(colors: Tensor) -> bytes:
    """Tells images (3, h, w) apart, whose tensor need not lie in that order."""
    rows = colors.permute(1, 2, 0).contiguous().cpu().numpy().tobytes()
    return blake2b(rows, digest_size=16, salt=b"%d" % colors.shape[-1]).digest()


def _state_of(encoder: nn.Module | None) -> Any:
    """Differs once a weight was written, moved, converted or replaced."""
    if encoder is None:
        return None
    return [
        (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version, tensor.dtype, tensor.device)
        for tensor in (*encoder.parameters(), *encoder.buffers())
    ]
