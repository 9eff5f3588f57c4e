"""Image-text retrieval with a trained task: contrastive ranks, and the matching head's re-ranking.

N samples, E width of the shared space, P pairs.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ..data.batch import Batch
from ..errors import RunError
from ..pretrain.task import Task
from .metrics.retrieval import ranks_by, reranked, summary

_CHUNK = 256  # pairs that are read together


@torch.no_grad()
def embeddings(task: Task, batches: Iterable[Batch]) -> tuple[Tensor, Tensor]:
    """Unit vectors of each sample's image and of its text, (N, E) both, with nothing hidden.

    Raises:
        RunError: the model mixes image and text from its first layer on.
    """
    image_NE, text_NE = list[Tensor](), list[Tensor]()
    for batch in batches:
        towers = task.model(task.look(batch)).towers
        if towers is None:
            raise RunError(
                "This run's model mixes image and text at once and embeds neither alone. Use "
                "model `two_stream` with `shared` set, and the `contrastive` objective."
            )
        image_NE.append(towers.image_BE.float().cpu())
        text_NE.append(towers.text_BE.float().cpu())
    return torch.cat(image_NE), torch.cat(text_NE)


def matching(task: Task, batch: Batch) -> Callable[[Tensor, Tensor], Tensor]:
    """The `itm` head as a judge of (images (P,), texts (P,)) of a batch: log-odds of a match (P,).

    Raises:
        RunError: the task has no `itm` objective.
    """
    if "itm" not in task.heads:
        raise RunError(
            f"A run with {sorted(task.heads)} judges no pairs. Train it with `kind: itm`."
        )

    @torch.no_grad()
    def judge(image_P: Tensor, text_P: Tensor) -> Tensor:
        found = list[Tensor]()
        for images, texts in zip(image_P.split(_CHUNK), text_P.split(_CHUNK), strict=True):
            text = batch.pick(texts)
            pair = replace(batch.pick(images), tokens_BL=text.tokens_BL, real_BL=text.real_BL)
            logits_P2 = task.heads["itm"](task.model(task.look(pair)).pooled_BD).float()
            found.append((logits_P2[:, 1] - logits_P2[:, 0]).cpu())
        return torch.cat(found)

    return judge


def score_retrieval(task: Task, batch: Batch, group_N: Tensor, depth: int = 0) -> dict[str, float]:
    """R@1/5/10 and median ranks both ways over the samples of one (large) batch.

    Args:
        task: put into evaluation mode and back.
        batch: the test, an image and a text a row.
        group_N: int64; rows of one number show the same thing, and each finds any of the others.
        depth: above 0, the best so many of each query are put in the matching head's order.

    Raises:
        RunError: the model or its heads cannot.
    """
    training = task.training
    task.eval()
    try:
        parts = (batch.take(at, at + _CHUNK) for at in range(0, batch.rows, _CHUNK))
        image_NE, text_NE = embeddings(task, parts)
        texts, images = image_NE @ text_NE.T, text_NE @ image_NE.T
        if depth:
            judge = matching(task, batch)
            texts = reranked(texts, depth, judge)
            images = reranked(images, depth, lambda text_P, image_P: judge(image_P, text_P))
    finally:
        task.train(training)
    both = {"image_to_text": texts, "text_to_image": images}
    return {
        f"{way}.{name}": value
        for way, similarity in both.items()
        for name, value in summary(ranks_by(similarity, group_N, group_N)).items()
    }
