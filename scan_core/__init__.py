"""SCAN, "Learning to Classify Images without Labels" (arXiv 2005.12320), on tensors and arrays.

Modules in the order data flows: ``sources``, ``ingest`` and ``store`` (from files to the store), ``images`` (the store
as training reads it), ``simclr_views``, ``strong_views`` and ``augment`` (views of a batch), ``networks`` (backbone,
heads), ``weights`` and ``checkpoints`` (their files), ``losses`` and ``schedule`` (pure functions), ``training`` and
``processes`` (what the loops share), ``simclr``, ``moco``, ``byol``, ``instance_discrimination``, ``rotation``,
``scan`` and ``selflabel`` (a loop each), ``inference``, ``neighbors``, ``evaluation`` and ``quality`` (what came out).

Shapes use one alphabet: N data set, B batch, D feature, K neighbours, C clusters, H heads.
"""
