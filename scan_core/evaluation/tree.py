"""Which groups are alike: a tree that merges them two by two, so that forty groups can be read as twelve."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Merge:
    """Two nodes of the tree become one. Node g is group g; the merge at position m makes the node C + m."""

    first: int
    second: int
    similarity: float  # mean cosine of all pairs of an image of one and an image of the other
    images: int  # in both


def merge_tree(embeddings: np.ndarray, clusters: np.ndarray, num_clusters: int) -> list[Merge]:
    """The merges of the groups in use, the most alike first: one fewer than groups in use.

    ``embeddings`` (N,D) are of length 1, ``clusters`` (N,) in [0, C). Average linkage (Sokal and Michener 1958) of the
    groups as they are, by the cosine: the mean over all pairs of images is the product of two sums.
    """
    sizes = np.bincount(clusters, minlength=num_clusters)
    sums = np.zeros((num_clusters, embeddings.shape[1]))  # (C,D)
    np.add.at(sums, clusters, embeddings)
    members = {node: (sums[node], int(sizes[node])) for node in np.flatnonzero(sizes).tolist()}
    merges: list[Merge] = []
    while len(members) > 1:
        nodes = list(members)
        means = np.stack([total / size for total, size in members.values()])  # (M,D)
        similarity = means @ means.T
        similarity[np.tril_indices(len(nodes))] = -np.inf
        row, column = np.unravel_index(similarity.argmax(), similarity.shape)
        first, second = nodes[row], nodes[column]
        (one, size), (other, others) = members.pop(first), members.pop(second)
        merges.append(Merge(first, second, float(similarity[row, column]), size + others))
        members[num_clusters + len(merges) - 1] = (one + other, size + others)
    return merges
