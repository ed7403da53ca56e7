"""Everything that learns: heatmap, keypoints, descriptors, mask decoder. Tensors in, tensors out."""
