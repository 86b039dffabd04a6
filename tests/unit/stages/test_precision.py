"""bfloat16 only where the device computes it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from clipsan.stages import precision
from clipsan.stages.model.clip import ModelConfig, load_clip
from clipsan.stages.precision import autocast, has_bf16, told

CPU = torch.device("cpu")
AVX2 = {"architecture": "x86_64", "avx2": True, "avx512_bf16": False, "amx_bf16": False}


def processor(monkeypatch: pytest.MonkeyPatch, **found: bool) -> None:
    """Be on a processor with these instructions."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {**AVX2, **found})


@pytest.mark.parametrize("instruction", ["avx512_bf16", "amx_bf16", "bf16", "sve_bf16"])
def test_a_processor_has_bfloat16_by_any_of_its_instructions(instruction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch, **{instruction: True})
    assert has_bf16(CPU)
    assert told("bf16", "cpu") == "bf16 where a worker's processor has it, else f32 (this one has it)"
    ones = torch.ones(2, 2)
    with autocast(CPU, bf16=True):
        assert (ones @ ones).dtype == torch.bfloat16
    with autocast(CPU, bf16=False):
        assert (ones @ ones).dtype == torch.float32


def test_a_processor_without_it_computes_in_float32_and_the_plan_says_so(
    monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path
) -> None:
    processor(monkeypatch)
    assert not has_bf16(CPU)
    assert told("bf16", "cpu") == "bf16 where a worker's processor has it, else f32 (this one has none)"
    assert told("f32", "cpu") == "f32"
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    model = ModelConfig(path=str(tiny_checkpoint))
    found = {name: load_clip(model, precision=name).encode_images(images)[0] for name in ("f32", "bf16")}  # type: ignore[arg-type]
    np.testing.assert_array_equal(found["bf16"], found["f32"])


def test_a_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    processor(monkeypatch)
    assert has_bf16(torch.device("cuda", 1))
    assert told("bf16", "cuda") == "bf16"


def test_torch_names_the_instructions_as_they_are_looked_for() -> None:
    known = torch.cpu.get_capabilities()
    here = {"x86_64": precision.INSTRUCTIONS[:2], "aarch64": precision.INSTRUCTIONS[2:3]}
    assert set(here.get(str(known["architecture"]), ())) <= set(known)
