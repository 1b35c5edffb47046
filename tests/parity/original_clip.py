"""CLIP as torch modules under its original names."""

from collections import OrderedDict

import torch
from torch import nn


class QuickGELU(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width, heads, activation):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        parts = [
            ("c_fc", nn.Linear(width, 4 * width)),
            ("gelu", activation()),
            ("c_proj", nn.Linear(4 * width, width)),
        ]
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width, heads, layers, activation):
        super().__init__()
        blocks = (Block(width, heads, activation) for _ in range(layers))
        self.resblocks = nn.ModuleList(blocks)

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


def drawn(*shape):
    return nn.Parameter(0.3 * torch.randn(*shape))


class Vision(nn.Module):
    def __init__(self, size, patch, width, heads, layers, embed, activation):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = drawn(width)
        self.positional_embedding = drawn((size // patch) ** 2 + 1, width)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, heads, layers, activation)
        self.proj = drawn(width, embed)

    def forward(self, x):
        x = self.conv1(x).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([first, x], dim=1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x[:, 0]) @ self.proj


class OriginalClip(nn.Module):
    """128 wide, two heads of 64 in both towers."""

    def __init__(self, activation=QuickGELU, size=16, patch=8, length=9, vocab=600):
        super().__init__()
        torch.manual_seed(0)
        width, heads, embed = 128, 2, 24
        self.visual = Vision(size, patch, width, heads, 1, embed, activation)
        self.transformer = Transformer(width, heads, 2, activation)
        self.token_embedding = nn.Embedding(vocab, width)
        self.positional_embedding = drawn(length, width)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = drawn(width, embed)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if "ln_" in name or name.endswith("bias"):
                    parameter.add_(0.2 * torch.randn(parameter.shape))

    def encode_text(self, tokens):
        length = tokens.shape[1]
        mask = torch.full((length, length), -torch.inf).triu(1)
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        x = self.ln_final(self.transformer(x, mask))
        return x[torch.arange(len(x)), tokens.argmax(dim=1)] @ self.text_projection

    @torch.no_grad()
    def forward(self, images, tokens):
        """Embeddings of images and texts, and logits per image."""
        image, text = self.visual(images), self.encode_text(tokens)
        unit = [x / x.norm(dim=1, keepdim=True) for x in (image, text)]
        return *unit, self.logit_scale.exp() * unit[0] @ unit[1].T
