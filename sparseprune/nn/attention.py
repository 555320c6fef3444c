"""``nn.MultiheadAttention`` whose projections are layers of their own, so that they can be sparse."""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProjectedAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` that calls ``in_proj`` and ``out_proj``, in place of reading their weights.

    ``in_proj`` gives queries, keys and values at once, (*, E) to (*, 3 E). Arguments, results and attributes
    are those of ``nn.MultiheadAttention``, but ``in_proj_weight`` and ``in_proj_bias`` are None, which also
    keeps torch from computing the layer with dense weights in evaluation. Where query, key and value are not
    one tensor, each is projected in full, and what is not needed of it dropped. :func:`sparsify` makes it.
    """

    in_proj: nn.Module
    original: type[nn.MultiheadAttention]

    @classmethod
    def from_attention(cls, attention: nn.MultiheadAttention) -> "ProjectedAttention":
        """A copy of an attention that :func:`why_not_projected` lets; ``in_proj`` is an ``nn.Linear``."""
        result: Any = copy.deepcopy(attention)
        weight, bias = result.in_proj_weight, result.in_proj_bias
        result.__class__, result.original = cls, type(attention)
        sizes = (weight.shape[1], weight.shape[0], bias is not None)
        in_proj = nn.utils.skip_init(nn.Linear, *sizes, device="meta")
        in_proj.weight, in_proj.bias = weight, bias
        result.register_parameter("in_proj_weight", None)
        result.register_parameter("in_proj_bias", None)
        # Parameters stand in the order that they had.
        result._modules = {"in_proj": in_proj.train(attention.training), **result._modules}
        assert isinstance(result, ProjectedAttention)
        return result

    def to_attention(self, in_proj: nn.Linear, out_proj: nn.Module) -> nn.MultiheadAttention:
        """What it was made from, with these projections; ``in_proj`` and ``out_proj`` are taken over."""
        result: Any = copy.copy(self)
        result._parameters, result._buffers = dict(self._parameters), dict(self._buffers)
        result.__class__ = result.__dict__.pop("original")
        result._modules = {name: m for name, m in self._modules.items() if name != "in_proj"}
        result.in_proj_weight, result.in_proj_bias = in_proj.weight, in_proj.bias
        result.out_proj = out_proj
        assert isinstance(result, nn.MultiheadAttention)
        return result

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *more: Any) -> None:
        """Also checkpoints of ``nn.MultiheadAttention``, as far as the projection loads dense weights."""
        for name in ("weight", "bias"):
            if f"{prefix}in_proj_{name}" in state_dict:
                state_dict[f"{prefix}in_proj.{name}"] = state_dict.pop(f"{prefix}in_proj_{name}")
        super()._load_from_state_dict(state_dict, prefix, *more)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See ``nn.MultiheadAttention.forward``."""
        if is_causal and attn_mask is None:
            raise RuntimeError(
                "ProjectedAttention: expected attn_mask beside is_causal=True, a hint that it is causal, got "
                "None; nn.Transformer.generate_square_subsequent_mask makes one"
            )
        batched, batch_first = query.dim() == 3, self.batch_first or query.dim() == 2
        projections = self._project(query, key, value)
        q, k, v = (self._heads(x if batched else x[None], batch_first) for x in projections)
        is_causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if is_causal else self._mask(attn_mask, key_padding_mask, q, k.shape[2])
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        # (N, heads, L, E / heads) to (N, L, E), or (L, N, E).
        y = (y.transpose(1, 2) if batch_first else y.permute(2, 0, 1, 3)).flatten(2)
        y = self.out_proj(y)
        return (y if batched else y[0]), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        of_query = self.in_proj(query).chunk(3, -1)
        if key is query and value is query:
            return of_query
        of_key = of_query if key is query else self.in_proj(key).chunk(3, -1)
        of_value = of_key if value is key else self.in_proj(value).chunk(3, -1)
        return of_query[0], of_key[1], of_value[2]

    def _heads(self, x: Tensor, batch_first: bool) -> Tensor:
        """(N, L, E), or (L, N, E), to (N, heads, L, E / heads)."""
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        return x.transpose(1, 2) if batch_first else x.permute(1, 2, 0, 3)

    def _mask(self, of_pairs: Tensor | None, of_keys: Tensor | None, q: Tensor, keys: int) -> Tensor | None:
        """What is added to the scores (N, heads, L, S)."""
        samples, heads, queries, _ = q.shape
        total: Tensor | None = None
        if of_pairs is not None:
            expected = [[queries, keys], [samples * heads, queries, keys]]
            if list(of_pairs.shape) not in expected:
                raise ValueError(
                    f"ProjectedAttention: expected attn_mask.shape == {expected[0]} or {expected[1]}, "
                    f"got {list(of_pairs.shape)}"
                )
            total = _additive(of_pairs, q.dtype)
            total = total if total.dim() == 2 else total.unflatten(0, (samples, heads))
        if of_keys is not None:
            of_keys = of_keys if of_keys.dim() == 2 else of_keys[None]
            if list(of_keys.shape) != [samples, keys]:
                raise ValueError(
                    f"ProjectedAttention: expected key_padding_mask.shape == {[samples, keys]}, "
                    f"got {list(of_keys.shape)}"
                )
            padding = _additive(of_keys, q.dtype)[:, None, None]
            total = padding if total is None else total + padding
        return total


def why_not_projected(attention: nn.MultiheadAttention) -> str:
    """Why its projections cannot become layers; empty if they can."""
    kind = type(attention)
    if kind.forward is not nn.MultiheadAttention.forward or "forward" in vars(attention):
        return f"{kind.__name__} has a forward of its own"
    if "in_proj_weight" not in attention._parameters or attention.in_proj_weight is None:
        return "attention with weights of their own for q, k and v"
    if attention.bias_k is not None or attention.add_zero_attn:
        return "attention with add_bias_kv or add_zero_attn"
    return ""


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """-inf where a bool mask is True; other masks are added as they are."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
