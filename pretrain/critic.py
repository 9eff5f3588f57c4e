"""A patch discriminator (Isola et al., CVPR 2017): is this patch of an image real?

Group norm stands where the original has batch norm, which would make a row's numbers depend on the
rows beside it, and so on the number of workers. B rows, h x w patches.
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Way = Literal["hinge", "vanilla"]
_GROUPS = 8


class Critic(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> logits (B, 1, h, w), above 0 for real patches."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        widths = [width * min(2**level, 8) for level in range(depth + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for level in range(1, depth + 1):
            stride = 2 if level < depth else 1
            conv = nn.Conv2d(widths[level - 1], widths[level], 4, stride, 1, bias=False)
            norm = nn.GroupNorm(min(_GROUPS, widths[level]), widths[level])
            layers += [conv, norm, nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return self.layers(image_BCHW)


def critic_loss(way: Way, real_B1hw: Tensor, fake_B1hw: Tensor) -> Tensor:
    """What the critic's verdicts cost it, (B,): half for real patches, half for others."""
    real, fake = real_B1hw.float().flatten(1), fake_B1hw.float().flatten(1)
    if way == "hinge":
        return (F.relu(1 - real).mean(1) + F.relu(1 + fake).mean(1)) / 2
    return (F.softplus(-real).mean(1) + F.softplus(fake).mean(1)) / 2
