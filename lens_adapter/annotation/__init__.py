"""Data sets in, annotations out: what `lens_adapter.annotate` writes, shard by shard, to a folder.

    part-00000.parquet ...   the rows; as many pictures in each as `shard_size` says
    _annotations.json        what they are of and made with, and their counts when all is done
    annotations.json         one COCO file, if it was asked for
    _preview.html            a page for the eye, if it was asked for

Every (picture, prompt) is a row, in the order of the input:

    image        the picture's name: its path as the list or the folder has it; without one, LIST#LINE as editors
                 count lines, of Parquet and data sets NAME#ROW, counted from 0
    width, height  in pixels, as a viewer shows the picture; null where it cannot be read
    prompt       a text
    found        whether the score is not below the score threshold; false where there is an error
    score        in [0, 1], the head's own estimate
    rle          the mask as COCO's {"size": [H, W], "counts": text}, drawn whatever `found` says
    box          left, top, right, bottom of the mask in pixel edges, the last two exclusive; zeros if it is empty
    area         pixels of the mask
    keypoints    [[x, y], ...] in pixels
    error        why there is no mask (then all of the above but image and prompt may be null); null: none

A picture that cannot be read has a row with its error for every prompt. What made a shard stands in its schema's
metadata under "lens_adapter", as JSON: base, head, their digests, thresholds, prompts, data, versions.
"""

from lens_adapter.annotation.folder import AnnotationReport
from lens_adapter.annotation.run import rethreshold

__all__ = ["AnnotationReport", "rethreshold"]
