"""Self-attention over the positions of a feature map."""

import torch.nn.functional as F
from torch import Tensor, nn

from memdist.nets.blocks import groups as default_groups
from memdist.nets.blocks import zeroed


class SelfAttention(nn.Module):
    """Residual multi-head self-attention, [N, channels, H, W] to the same: x + project(attend(norm(x))).

    `heads` divides `channels`. `groups` are those of the group normalisation (default: the largest divisor of
    `channels` up to 32). The queries, keys and values of one head lie side by side in the output of `qkv`
    (head first, then q, k, v), which is the order of the published weights. With `zero` the block starts as
    the identity (Dhariwal & Nichol 2021, arXiv 2105.05233). Memory is linear in H*W wherever torch has a
    fused kernel.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 1,
        groups: int | None = None,
        bias: bool = True,
        zero: bool = True,
    ) -> None:
        super().__init__()
        assert channels % heads == 0, f"{heads} heads do not divide {channels} channels"
        self.heads = heads
        self.norm = nn.GroupNorm(groups or default_groups(channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.project = nn.Conv2d(channels, channels, 1)
        if zero:
            zeroed(self.project)

    def forward(self, x: Tensor) -> Tensor:
        """Let every position of x [N, C, H, W] attend to all of them."""
        n, channels, height, width = x.shape
        split = (n, self.heads, 3, channels // self.heads, height * width)
        query, key, value = (
            self.qkv(self.norm(x)).reshape(split).transpose(-1, -2).unbind(2)
        )  # [N, heads, H*W, C/heads]
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.project(attended.transpose(-1, -2).reshape(n, channels, height, width))
