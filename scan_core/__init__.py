"""SCAN, "Learning to Classify Images without Labels" (arXiv 2005.12320), on tensors and arrays.

Modules in the order data flows: ``sources`` and ``data`` (images), ``simclr_views``, ``strong_views`` and ``augment``
(views of a batch), ``networks`` (backbone, heads), ``weights`` (their files), ``losses`` and ``schedule`` (pure
functions), ``training`` (what the loops share), ``simclr``, ``scan`` and ``selflabel`` (a loop each), ``inference``,
``neighbors``, ``metrics``.

Shapes use one alphabet: N data set, B batch, D feature, K neighbours, C clusters, H heads.
"""
