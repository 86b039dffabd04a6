"""Settings and files that no trigger can be made of are refused, and named."""

from typing import Any

import numpy as np
import pydantic
import pytest

from clipsan.stages.attack.triggers import PatchConfig, ReplaceConfig, TriggerConfig


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"kind": "patch", "size_px": 4, "pattern": "picture"}, "picture: PATH goes with"),
        ({"kind": "patch", "size_px": 4, "picture": "x.png"}, "picture: PATH goes with"),
        ({"kind": "patch", "size_px": 4, "seed": -1}, r"seed\s+Input should be greater than or equal to 0"),
        ({"kind": "sig", "delta": 0}, r"delta\s+Input should be greater than 0"),
        ({"kind": "sig", "cycles": 0}, r"cycles\s+Input should be greater than 0"),
        ({"kind": "sig", "alpha": 0.2}, "alpha"),
        ({"kind": "sig_blended", "alpha": 1.0}, r"alpha\s+Input should be less than 1"),
        ({"kind": "sig_blended", "region_fraction": 0}, r"region_fraction\s+Input should be greater than 0"),
        ({"kind": "wanet", "k": 1}, r"k\s+Input should be greater than or equal to 2"),
        ({"kind": "wanet", "s": 0}, r"s\s+Input should be greater than 0"),
        ({"kind": "wanet_unsmoothed", "k": 4}, "k"),
        ({"kind": "wanet_unsmoothed", "seed": -1}, r"seed\s+Input should be greater than or equal to 0"),
        ({"kind": "nashville", "strength": 0}, r"strength\s+Input should be greater than 0"),
        ({"kind": "darken", "factor": 1.0}, r"factor\s+Input should be less than 1"),
        ({"kind": "resize", "fraction": 0}, r"fraction\s+Input should be greater than 0"),
        ({"kind": "resize", "jpeg_quality": 0}, r"jpeg_quality\s+Input should be greater than or equal to 1"),
        ({"kind": "replace"}, "picture"),
        ({"kind": "replace", "picture": "x.png", "jitter": 1.0}, r"jitter\s+Input should be less than 1"),
    ],
)
def test_impossible_settings_are_named(settings: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        pydantic.TypeAdapter(TriggerConfig).validate_python(settings)


@pytest.mark.parametrize(
    ("array", "rule"),
    [
        (np.zeros((4, 4)), r"must hold \[H, W, 3\]"),
        (np.full((4, 4, 3), 2.0), r"floats in \[0, 1\]"),
        (np.full((4, 4, 3), np.nan), r"floats in \[0, 1\]"),
        (np.zeros((4, 4, 3), dtype=np.int64), "must hold uint8"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(tmp_path, array: np.ndarray, rule: str) -> None:
    np.save(tmp_path / "array.npy", array)
    with pytest.raises(ValueError, match=rule):
        ReplaceConfig(picture=str(tmp_path / "array.npy")).build()


def test_files_that_are_no_picture_are_refused(tmp_path) -> None:
    (tmp_path / "text.npy").write_bytes(b"not an array")
    for name in ("text.npy", "missing.npy", "missing.png"):
        with pytest.raises(ValueError, match=f"cannot read .*{name}"):
            PatchConfig(size_px=4, pattern="picture", picture=str(tmp_path / name)).build()
