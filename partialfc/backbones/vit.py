"""Vision transformer for faces: small patches, no class token, all tokens projected together.

Names and shapes of its state_dict match the ViT checkpoints of insightface and LVFace, so that their weights
load.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from partialfc.backbones.projection import Projection

_NUM_HEADS, _MLP_RATIO = 8, 4  # attention heads; hidden width of the MLP relative to the token width


class VisionTransformer(nn.Module):
    """Vision transformer: float images `[b, 3, H, W]` in [-1, 1] -> float32 embeddings `[b, D]`, not normalized.

    An image has N = (H // patch_size)^2 tokens of size `width`.

    Args:
        input_size: H = W.
        embedding_size: D.
        dropout: Dropout rate before the embedding layer.
        width: Token size.
        depth: Number of blocks.
        patch_size: Height and width of a patch.
        drop_path_rate: Probability of skipping the last block for a sample; increases linearly from 0.
        mask_ratio: Fraction of the tokens dropped in training; a learned token replaces them after the
            blocks.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        patch_size: int,
        input_size: int,
        embedding_size: int,
        dropout: float,
        drop_path_rate: float,
        mask_ratio: float,
    ) -> None:
        super().__init__()
        self.input_size, self._mask = input_size, mask_ratio
        tokens = (input_size // patch_size) ** 2
        self.patch_embed = _PatchEmbed(width, patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dropout = nn.Dropout(dropout)
        shares = [drop_path_rate * place / max(1, depth - 1) for place in range(depth)]
        self.blocks = nn.ModuleList([_TransformerBlock(width, dropout, share) for share in shares])
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            Projection(width * tokens, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            Projection(width, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=2e-5),
        )
        self._initialize()

    def _initialize(self) -> None:
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                # The reference code truncates at 100 sigmas, that is, never.
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings `[b, D]` of images `[b, 3, H, W]`."""
        tokens = self.dropout(self.patch_embed(images) + self.pos_embed)
        kept = self._sample_visible_tokens(tokens) if self.training and self._mask else None
        inner = tokens if kept is None else tokens.gather(1, kept.expand(-1, -1, tokens.shape[2]))
        for block in self.blocks:
            inner = block(inner)
        inner = self.norm(inner.float())
        if kept is not None:
            whole = self.mask_token.to(inner.dtype).expand(tokens.shape)
            inner = whole.scatter(1, kept.expand(-1, -1, tokens.shape[2]), inner)
        embeddings: Tensor = self.feature(inner.flatten(1))
        return embeddings

    def _sample_visible_tokens(self, tokens: Tensor) -> Tensor:
        """Return the indices `[b, num_visible, 1]` of the retained tokens."""
        count = int(tokens.shape[1] * (1 - self._mask))
        noise = torch.rand(tokens.shape[:2], device=tokens.device)
        return noise.argsort(1)[:, :count, None]


class _PatchEmbed(nn.Module):
    """Images to tokens `[b, N, width]`, row by row."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, dropout: float, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = _Attention(width, dropout)
        self.mlp = _MLP(width, dropout)
        self._drop_path = drop_path_rate

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self._apply_drop_path(self.attn(self.norm1(tokens)))
        return tokens + self._apply_drop_path(self.mlp(self.norm2(tokens)))

    def _apply_drop_path(self, residual: Tensor) -> Tensor:
        """Zero the residual for some samples and rescale the others (stochastic depth, arXiv:1603.09382)."""
        if not self.training or not self._drop_path:
            return residual
        stays = torch.rand(residual.shape[0], 1, 1, device=residual.device) >= self._drop_path
        return residual * stays / (1 - self._drop_path)


class _Attention(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        split = self.qkv(tokens).view(batch, count, 3, _NUM_HEADS, width // _NUM_HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind()
        mixed = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.dropout(self.proj(mixed.transpose(1, 2).reshape(batch, count, width)))
        return out


class _MLP(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, _MLP_RATIO * width), nn.Linear(_MLP_RATIO * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        inner = self.dropout(functional.relu6(self.fc1(tokens)))
        out: Tensor = self.dropout(self.fc2(inner))
        return out
