"""bfloat16 where the device computes it, float32 where it would only be imitated."""

import torch

INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Of processors that compute bfloat16, x86 and ARM; a processor has one of them or imitates it."""


def has_bf16(device: torch.device) -> bool:
    """Tell whether a device computes bfloat16. On a processor that does not, a training step takes 8 to 11 times as long as in float32."""
    if device.type != "cpu":
        return True
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in INSTRUCTIONS)


def autocast(device: torch.device, *, bf16: bool) -> torch.autocast:
    """Return the context of a forward pass: bfloat16 where it is wished and the device has it, else float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 and has_bf16(device))


def told(precision: str, device: str) -> str:
    """Return a precision as a plan tells it: whoever tells it may have another processor than the workers."""
    if precision == "bf16" and device == "cpu":
        here = "this one has it" if has_bf16(torch.device(device)) else "this one has none"
        return f"bf16 where a worker's processor has it, else f32 ({here})"
    return precision
