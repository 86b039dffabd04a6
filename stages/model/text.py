"""CLIP's text tower over the positions that texts have.

Published CLIPs take 77 tokens, of which a caption of the web has a dozen or two. Their attention is causal and the vector of a text is
that of its end token, so that what lies behind the ends of all texts of a batch changes nothing and need not be computed.
"""

from typing import Any

import open_clip
import torch
from open_clip.transformer import text_global_pool


def ends(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return the last position that each text's vector depends on, `[B] int64`; for a tower that reads to the end the last of all.

    Args:
        model: of open_clip.
        tokens: `[B, L]` integers, L at most the model's context length.
    """
    if type(model) is open_clip.CLIP and model.attn_mask is not None:
        if model.text_pool_type == "argmax":
            return tokens.argmax(dim=1)
        if model.text_pool_type == "eos":
            is_end: torch.Tensor = tokens == model.text_eos_id
            return is_end.int().argmax(dim=1)
    return torch.full((len(tokens),), tokens.shape[1] - 1)


def shorten(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return `[B, L]` of `[B, context_length]` tokens, on the CPU: what lies behind the ends of all texts is left out."""
    return tokens[:, : int(ends(model, tokens).max()) + 1].contiguous() if len(tokens) else tokens


def encode_text(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Return what `model.encode_text` returns, `[B, D]`, of tokens `[B, L]` that may be shortened; open_clip itself takes whole ones."""
    length = tokens.shape[1]
    if type(model) is not open_clip.CLIP or length == len(model.positional_embedding):
        whole: torch.Tensor = model.encode_text(tokens)
        return whole
    dtype = model.transformer.get_cast_dtype()
    x = model.token_embedding(tokens).to(dtype) + model.positional_embedding[:length].to(dtype)
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    found: torch.Tensor = text_global_pool(
        x, tokens, model.text_pool_type, eos_token_id=getattr(model, "text_eos_id", None)
    )
    if isinstance(model.text_projection, torch.nn.Linear):
        found = model.text_projection(found)
    elif model.text_projection is not None:
        found = found @ model.text_projection
    return found
