"""Retrieval of texts by images and of images by texts: R@1, R@5, R@10 and the median rank.

I images, T texts, Q queries, K keys, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ...errors import DataError

_DEPTHS = (1, 5, 10)
_CHUNK = 1024  # queries at a time: 1024 x 25,000 texts are 100 MB


def retrieval(image_ID: Tensor, text_TD: Tensor, image_T: Tensor | None = None) -> dict[str, float]:
    """R@1/5/10 (0 to 1) and the median rank (1 is best) both ways.

    Keys are `image_to_text.r1`, ..., `text_to_image.median_rank`.

    Args:
        image_ID: an embedding an image; the dot product is the similarity.
        text_TD: an embedding a text.
        image_T: int64, which image each text belongs to; without it, text i to image i.

    Raises:
        DataError: a text without its image, or an image without a text.
    """
    images = torch.arange(len(image_ID), device=image_ID.device)
    image_T = images if image_T is None else image_T.to(images.device)
    if len(image_T) != len(text_TD) or not images.equal(image_T.unique()):
        raise DataError(
            f"Retrieval: {len(text_TD)} texts name {len(image_T.unique())} of {len(images)} "
            "images. Every text needs its image, and every image a text."
        )
    texts = ranks(image_ID, text_TD, images, image_T)
    pictures = ranks(text_TD, image_ID, image_T, images)
    return {
        **{f"image_to_text.{name}": value for name, value in summary(texts).items()},
        **{f"text_to_image.{name}": value for name, value in summary(pictures).items()},
    }


def summary(ranks_Q: Tensor) -> dict[str, float]:
    """`r1`, `r5`, `r10` and `median_rank` of the ranks of queries; an even number's median is the
    mean of the middle two."""
    found = {f"r{depth}": float((ranks_Q <= depth).double().mean()) for depth in _DEPTHS}
    return {**found, "median_rank": float(ranks_Q.double().quantile(0.5))}


def ranks(query_QD: Tensor, key_KD: Tensor, group_Q: Tensor, group_K: Tensor) -> Tensor:
    """Rank of each query's best right key, (Q,) int64 from 1.

    Args:
        query_QD: embeddings that ask.
        key_KD: embeddings that are searched.
        group_Q: int64; the right keys of a query are those of its group.
        group_K: int64.
    """
    chunks = zip(query_QD.split(_CHUNK), group_Q.split(_CHUNK), strict=True)
    found = [ranks_by(query @ key_KD.T, group, group_K) for query, group in chunks]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def ranks_by(similarity_QK: Tensor, group_Q: Tensor, group_K: Tensor) -> Tensor:
    """As `ranks`, of a matrix of similarities.

    A wrong key that is as similar as the right one ranks before it, and so does one whose
    similarity is not a number: a model that says the same of all keys comes last, not first.
    """
    right_QK = group_Q[:, None] == group_K
    best_Q1 = similarity_QK.masked_fill(~right_QK, -torch.inf).amax(1, keepdim=True)
    return 1 + (~(similarity_QK < best_Q1) & ~right_QK).sum(1)


def reranked(
    similarity_QK: Tensor, depth: int, verdict: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Similarities with each query's `depth` best keys put in the order of a slower judge.

    An image-text matching head reads a pair together, which costs a forward pass a pair; so only
    the best of the contrastive order are shown to it, and they stay before all others.

    Args:
        similarity_QK: the quick order.
        depth: keys that are judged for each query; more than there are is all.
        verdict: (queries (P,), keys (P,)) int64 -> how well each pair matches (P,).
    """
    depth = min(depth, similarity_QK.shape[1])
    top_Qk = similarity_QK.topk(depth, 1).indices
    query_Qk = torch.arange(len(top_Qk), device=top_Qk.device)[:, None].expand_as(top_Qk)
    judged_Qk = verdict(query_Qk.flatten(), top_Qk.flatten()).view_as(top_Qk).double()
    lift = similarity_QK.double().max() - judged_Qk.min() + 1
    return similarity_QK.double().scatter(1, top_Qk, judged_Qk + lift)
