"""Image-text retrieval with a trained task: contrastive ranks, and the matching head's re-ranking.

N samples, I pictures, E width of the shared space, P pairs.
"""

from collections.abc import Callable, Iterable, Iterator
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
                "model `two_stream` with `shared` set, and the `contrastive` objective; or let a "
                "run with `itm` judge every pair."
            )
        image_NE.append(towers.image_BE.float().cpu())
        text_NE.append(towers.text_BE.float().cpu())
    return torch.cat(image_NE), torch.cat(text_NE)


def matching(
    task: Task, batch: Batch, told: Callable[[int], None] = lambda count: None
) -> Callable[[Tensor, Tensor], Tensor]:
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
            told(len(images))
        return torch.cat(found)

    return judge


def score_retrieval(
    task: Task,
    batch: Batch,
    group_N: Tensor,
    depth: int = 0,
    *,
    pairs: bool = False,
    told: Callable[[int], None] = lambda count: None,
) -> dict[str, float]:
    """R@1/5/10 and median ranks both ways over the samples of one (large) batch.

    A picture asks and is found once, however many rows show it, as in the tests of COCO and
    Flickr30k: I pictures, N texts.

    Args:
        task: put into evaluation mode and back.
        batch: the test, an image and a text a row.
        group_N: int64; rows of one number show the same picture.
        depth: above 0, the best so many of each query are put in the matching head's order.
        pairs: have the matching head judge every pair instead, which costs I x N passes and
            needs no towers (UNITER's way).
        told: told of rows that were embedded, or with `pairs` of pairs that were judged.

    Raises:
        RunError: the model or its heads cannot.
    """
    row_I, group_I = _firsts(group_N)
    training = task.training
    task.eval()
    try:
        if pairs:
            image_P = row_I.repeat_interleave(batch.rows)
            text_P = torch.arange(batch.rows).repeat(len(row_I))
            texts_IN = matching(task, batch, told)(image_P, text_P).view(len(row_I), batch.rows)
            images_NI = texts_IN.T
        else:
            texts_IN, images_NI = _by_towers(task, batch, row_I, depth, told)
    finally:
        task.train(training)
    both = {
        "image_to_text": ranks_by(texts_IN, group_I, group_N),
        "text_to_image": ranks_by(images_NI, group_N, group_I),
    }
    return {
        f"{way}.{name}": value
        for way, found in both.items()
        for name, value in summary(found).items()
    }


def _by_towers(
    task: Task, batch: Batch, row_I: Tensor, depth: int, told: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    """Similarities (I, N) and (N, I), the best `depth` of each query in the judge's order."""

    def parts() -> Iterator[Batch]:
        for at in range(0, batch.rows, _CHUNK):
            part = batch.take(at, at + _CHUNK)
            yield part
            told(part.rows)

    image_NE, text_NE = embeddings(task, parts())
    texts_IN = image_NE[row_I] @ text_NE.T
    images_NI = texts_IN.T
    if not depth:
        return texts_IN, images_NI
    judge = matching(task, batch)
    return (
        reranked(texts_IN, depth, lambda image_P, text_P: judge(row_I[image_P], text_P)),
        reranked(images_NI, depth, lambda text_P, image_P: judge(row_I[image_P], text_P)),
    )


def _firsts(group_N: Tensor) -> tuple[Tensor, Tensor]:
    """The first row of each group, (I,), and their groups, (I,)."""
    first = dict[int, int]()
    for row, group in enumerate(group_N.tolist()):
        first.setdefault(group, row)
    return torch.tensor(list(first.values())), torch.tensor(list(first))
