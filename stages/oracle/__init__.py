"""The segmentation oracle: regions of an image, what CLIP claims of them, and the proof that one of them is a trigger."""
