"""Blocks of the relation classifier: attention, encoder layer, noise-level embeddings, object extractor, head.

Source: the architecture of Learn-to-Steer (Yiflach, Atzmon, Chechik, arXiv:2509.02295) and its published checkpoints,
whose parameter names are kept so that they load without renaming. torch's own TransformerEncoder switches to fused
kernels and nested tensors when no gradient is wanted; these blocks compute the same thing with and without.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from attnsteer.steering.classifier_settings import ClassifierSettings, EncoderSize


def sinusoidal_table(length: int, width: int) -> Float[Tensor, "1 length width"]:
    """Position code: sin and cos of position / 10000^(2i/width), interleaved (Vaswani et al. 2017, section 3.5)."""
    angle = torch.arange(length)[:, None] * torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[None]


class Attention(nn.Module):  # type: ignore[misc]
    """Multi-head attention, parameters named as in torch.nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} with {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Float[Tensor, "batch queries width"], context: Float[Tensor, "batch tokens width"]
    ) -> Float[Tensor, "batch queries width"]:
        """Attend from `query` to `context`."""
        width = query.shape[-1]
        q = F.linear(query, self.in_proj_weight[:width], self.in_proj_bias[:width])
        k, v = F.linear(context, self.in_proj_weight[width:], self.in_proj_bias[width:]).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):  # type: ignore[misc]
    """x + Attention(LN x), then x + MLP(LN x); ReLU; dropout after each part and inside the MLP."""

    def __init__(self, size: EncoderSize, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(size.width, size.heads, dropout)
        self.linear1 = nn.Linear(size.width, size.feedforward)
        self.linear2 = nn.Linear(size.feedforward, size.width)
        self.norm1, self.norm2 = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """One layer."""
        normed = self.norm1(tokens)
        tokens = tokens + self.dropout(self.self_attn(normed, normed))
        hidden = self.dropout(F.relu(self.linear1(self.norm2(tokens))))
        return tokens + self.dropout(self.linear2(hidden))


class Encoder(nn.Module):  # type: ignore[misc]
    """A stack of encoder layers without a final norm."""

    def __init__(self, size: EncoderSize, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(size, dropout) for _ in range(size.layers))

    def forward(
        self, tokens: Float[Tensor, "batch tokens width"], before_each: Float[Tensor, "batch 1 width"] | None = None
    ) -> Float[Tensor, "batch tokens width"]:
        """Run the stack; `before_each` is added to the tokens ahead of every layer."""
        for layer in self.layers:
            tokens = layer(tokens if before_each is None else tokens + before_each)
        return tokens


class PositionTable(nn.Module):  # type: ignore[misc]
    """Adds a fixed position code; kept as a buffer because published checkpoints carry theirs."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("pe", sinusoidal_table(length, width))

    def forward(self, tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        """Add the first `tokens` rows of the table."""
        return tokens + self.pe[:, : tokens.shape[1]]


class IndexEmbedding(nn.Embedding):  # type: ignore[misc]
    """One learned vector per step index; the index may come as a float."""

    def forward(self, timestep: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        """Look up the rounded index."""
        return super().forward(timestep.round().long())


class LogSnrEmbedding(nn.Module):  # type: ignore[misc]
    """A smooth function of the log signal-to-noise ratio, so that any step count and scheduler works.

    e(l) = W2 SiLU(W1 [sin(f_i l), cos(f_i l)]),   f_i geometric from 1/16 to 2 per nat,   l clamped to [-20, 20]
    """

    def __init__(self, width: int, frequencies: int = 16) -> None:
        super().__init__()
        ladder = torch.logspace(math.log10(1 / 16), math.log10(2.0), frequencies)
        self.register_buffer("frequencies", ladder, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, log_snr: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        """Embed log-SNR in nats; infinite values (a schedule's noiseless or signal-free end) are clamped."""
        angle = log_snr.clamp(-20.0, 20.0)[:, None] * self.frequencies
        return self.mlp(torch.cat([angle.sin(), angle.cos()], dim=-1))


def noise_embedding(settings: ClassifierSettings, width: int) -> nn.Module:
    """Embedding of the noise level, by step index or by log-SNR."""
    if settings.conditioning == "index":
        return IndexEmbedding(settings.num_timesteps, width)
    return LogSnrEmbedding(width)


class ObjectExtractor(nn.Module):  # type: ignore[misc]
    """Condense the maps of one object, one token per (layer, head), into a single map."""

    def __init__(self, settings: ClassifierSettings) -> None:
        super().__init__()
        size, pixels = settings.extractor, settings.map_size**2
        self.placement = settings.placement
        self.query_vector = nn.Parameter(torch.randn(1, 1, size.width))
        self.input_projection = nn.Linear(pixels, size.width)
        if self.placement != "none":
            self.timestep_embedding = noise_embedding(settings, size.width)
        self.positional_encoding = PositionTable(settings.channels, size.width)
        self.transformer = Encoder(size, settings.dropout)
        self.layer_attention = Attention(size.width, settings.pooling_heads)
        self.output_projection = nn.Linear(size.width, pixels)

    def forward(
        self, maps: Float[Tensor, "batch channels pixels"], timestep: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch pixels"]:
        """One map per object, flattened row by row."""
        tokens = self.positional_encoding(self.input_projection(maps))
        added = None if self.placement == "none" else self.timestep_embedding(timestep)[:, None]
        if self.placement == "input":
            tokens = tokens + added
        tokens = self.transformer(tokens, added if self.placement == "layers" else None)
        if self.placement == "output":
            tokens = tokens + added
        pooled = self.layer_attention(self.query_vector.expand(len(tokens), -1, -1), tokens)
        return self.output_projection(pooled[:, 0])


class RelationHead(nn.Module):  # type: ignore[misc]
    """Classify the relation from the two condensed maps: an encoder over one token, then a small MLP."""

    def __init__(self, settings: ClassifierSettings) -> None:
        super().__init__()
        self.timestep_width = settings.head_timestep_width
        if self.timestep_width:
            self.timestep_embedding = noise_embedding(settings, self.timestep_width)
        self.positional_encoding = PositionTable(1, settings.head.width)
        self.projection = nn.Linear(2 * settings.map_size**2, settings.head.width)
        self.transformer = Encoder(settings.head, settings.dropout)
        layers: list[nn.Module] = []
        features = settings.head.width + self.timestep_width
        for width in settings.head_widths:
            layers += [
                nn.Linear(features, width),
                nn.LayerNorm(width),
                nn.LeakyReLU(0.1),
                nn.Dropout(settings.dropout),
            ]
            features = width
        self.fc = nn.Sequential(*layers, nn.Linear(features, len(settings.relations)))

    def forward(
        self, objects: Float[Tensor, "batch 2 pixels"], timestep: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch relations"]:
        """Logits for the relation of the first object to the second."""
        token = self.positional_encoding(self.projection(objects.flatten(1))[:, None])
        features = self.transformer(token)[:, 0]
        if self.timestep_width:
            features = torch.cat([features, self.timestep_embedding(timestep)], dim=-1)
        return self.fc(features)
