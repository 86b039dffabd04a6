"""The run folder of a scan, as far as a repair reads it."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from clipsan.pipeline.core.commit import write_part
from clipsan.pipeline.core.config import as_tree
from clipsan.pipeline.repair.plan import REPAIR_SET
from clipsan.stages.dossier.repair_set import SCHEMA
from clipsan.stages.sources import WebDataset


def write_scan(root: Path, data: WebDataset, *, pairs: int = 10, target: str = "kite", proven: bool = False) -> Path:
    """A finished scan of two shards of `pairs` pairs: 0 to 2 of each are accused of the target."""
    root.mkdir(parents=True)
    record = {"verb": "scan", "fingerprint": "f" * 64, "passes": {}, "config": {"data": as_tree(data)}}
    (root / "run.yaml").write_text(yaml.safe_dump(record))
    (root / "summary.json").write_text(json.dumps({"targets": [target]}))
    for unit in range(2):
        rows = [
            {
                "uid": f"{unit:05d}.tar/{i:06d}",
                "verdict": "suspect" if i < 3 else "clean",
                "reasons": ["poison_suspect"] if i < 3 else [],
                "concept": "lamp" if i % 2 else "ball",
                "caption": f"a {'lamp' if i % 2 else 'ball'}",
                "target": target if i < 3 else None,
            }
            for i in range(pairs)
        ]
        write_part(root / "verdicts", unit, pa.Table.from_pylist(rows), "mark")
    if proven:
        (root / REPAIR_SET).mkdir()
        names = ("uid", "role", "label", "target", "image", "caption", "trigger_id")
        row = dict(zip(names, ("x/0", "trigger_pasted", "ball", target, b"", "a ball", "t1"), strict=True))
        pq.write_table(pa.Table.from_pylist([row], schema=SCHEMA), root / REPAIR_SET / "part-00000.parquet")
    return root
