"""SCAN, "Learning to Classify Images without Labels" (arXiv 2005.12320), on tensors and arrays.

``method`` is the paper's algorithm in one function: read it first. Its subpackages, from files to scores:

- ``data``: a source of images (folder, archive, named set) becomes the store. ``prepare`` alone comes here.
- ``images``: the store as a network sees it.
- ``views``: random views of a batch.
- ``models``: backbones and heads, their files, their outputs; frozen networks.
- ``compute``: device and precision, several processes, CUDA graphs.
- ``training``: the state of a training, one step of it, learning rates and optimizers.
- ``pretext``: SimCLR, MoCo, BYOL, instance discrimination, rotation: a loop each.
- ``clustering``: neighbors, the SCAN loss, self-labeling; groups from the embeddings of frozen networks.
- ``evaluation``: scores with labels and without.
- ``weights``: weights that others have published, by name, from the hub or from a checkpoint.

A subpackage's settings are in its ``settings``.

Shapes use one alphabet: N data set, B batch, D feature, K neighbors, C clusters, H heads.
"""
