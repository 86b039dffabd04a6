"""What every verb checks of its settings."""

from pathlib import Path

import pytest

from clipsan.pipeline.core.config import ConfigError
from clipsan.pipeline.core.verb import check_apart
from clipsan.pipeline.scan.plan import ScanConfig
from clipsan.stages.model.checkpoints import ModelConfig
from clipsan.stages.sources import ParquetSource, SourceConfig
from clipsan.stages.verdicts import ThresholdDecision


@pytest.mark.parametrize("name", ["data", "trusted"])
def test_a_run_folder_in_the_middle_of_its_data_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "pairs").mkdir()

    def settings(path: str, out: str) -> ScanConfig:
        sources: dict[str, SourceConfig] = {"data": ParquetSource(path="/elsewhere/*.parquet")}
        sources[name] = ParquetSource(path=path)
        decision = ThresholdDecision()
        return ScanConfig(**sources, model=ModelConfig(path="m"), out=out, decision=decision)

    check_apart(settings(f"{tmp_path}/pairs", f"{tmp_path}/run"))
    check_apart(settings(f"{tmp_path}/pairs/*.parquet", f"{tmp_path}/pairs/run"))
    with pytest.raises(ConfigError, match=rf"pairs/run: it lies in {tmp_path}/pairs, .*\({name}\.path\)"):
        check_apart(settings(f"{tmp_path}/pairs", f"{tmp_path}/pairs/run"))
