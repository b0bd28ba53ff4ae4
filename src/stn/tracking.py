"""Logs runs and tables to wandb or to CSV files. Nothing here changes a number.

In wandb each seed is a run, and the seeds of a cell with the same settings and the same code are a group. A resumed run
keeps its id, which is stored in its scratch folder, so that `wandb sync` merges its offline folders into one run.
"""

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from stn.config import CONF, experiment
from stn.errors import UserError
from stn.files import write_texts

ID = "wandb.json"  # in a scratch folder
NAME, TAG = 128, 64  # the most characters that wandb allows
HEADER = 7  # bytes of an empty file of wandb


class StepLogger(WandbLogger):
    """A `WandbLogger` whose rows are numbered by training steps, also after an interruption.

    A step that a resumed run repeats has the same number as before. A validation after n steps has number n, where
    Lightning has n - 1. All curves use this axis, `trainer/global_step`, as `WandbLogger` defines it.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is not None and "validation/error" in metrics:
            step += 1
        self.experiment.log({**metrics, "trainer/global_step": step}, step=step)


def make_logger(cfg: DictConfig, cell: str, seed: int, folder: Path) -> Logger | bool:
    """The logger of a seed of the cell titled `cell`, whose scratch folder is `folder`; False for logger=none."""
    name = f"{cell}/s{seed}"
    if cfg.logger.name == "wandb":
        _wandb("or choose logger=csv")
        settings = folder.name.rpartition("-s")[0]  # the digest of config and code
        logger = StepLogger(
            project=cfg.logger.project,
            name=name[-NAME:],
            id=run_id(folder, Path(cfg.outputs)),
            resume="allow",
            group=f"{cfg.budget.name}/{cell}/{settings}"[-NAME:],
            job_type="train",
            tags=[tag[:TAG] for tag in (cfg.data.kind, cfg.data.name, cfg.model.name, cfg.budget.name)],
            save_dir=Path(cfg.outputs).resolve(),  # wandb's service may run in an earlier folder
            config={**experiment(cfg), "seed": seed},
        )
        logger._wandb_init.pop("anonymous", None)  # Lightning passes it, but wandb warns that it has no effect
        return logger
    return CSVLogger(cfg.outputs, name=f"csv/{name.replace('/', '-')}") if cfg.logger.name == "csv" else False


@rank_zero_only
def run_id(folder: Path, outputs: Path) -> str:
    """The id of the run whose scratch folder is `folder`; it lasts until the folder is removed, as by fresh=true."""
    path = folder / ID
    if not path.exists():
        write_texts({path: json.dumps({"id": secrets.token_hex(6)})})
    name = json.loads(path.read_text(encoding="utf-8"))["id"]
    for file in (outputs / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"):
        if file.stat().st_size <= HEADER:  # a run that was killed early: `wandb sync` would stop at it
            shutil.rmtree(file.parent)
    return name


def finish_run(logger: Any, result: Mapping[str, Any], parameters: int) -> None:
    """Write the summary of a finished seed's wandb run, and end the run. Other loggers are left alone."""
    if not isinstance(logger, WandbLogger):
        return
    summary = {"test/error": result["error"], "parameters": parameters}
    summary |= {key: result[key] for key in ("steps", "images_seen", "seconds")}
    if errors := [error for _, error, _ in result["validation"]]:  # of the whole run, interrupted or not
        summary |= {"validation/best_error": min(errors), "validation/last_error": errors[-1]}
    logger.experiment.summary.update(summary)
    logger.experiment.finish()


def log_table(name: str, rows: Sequence[Mapping[str, Any]], outputs: Path) -> None:
    """Send a table to wandb as a `wandb.Table`, in a separate run of that name, and print where the run is."""
    wandb = _wandb("or leave out --wandb")
    outputs.mkdir(parents=True, exist_ok=True)
    project = OmegaConf.load(CONF / "logger/wandb.yaml").project
    with wandb.init(project=project, name=name, job_type="table", tags=["table"], dir=str(outputs.resolve())) as run:
        run.log({name: wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])})
        place = run.url or os.path.relpath(Path(run.dir).parent)
    print(f"sent to wandb: {place}")


def _wandb(otherwise: str) -> ModuleType:
    """The module wandb, offline and silent unless the environment says otherwise."""
    os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    try:
        import wandb
    except ModuleNotFoundError:
        raise UserError(f"wandb is not installed: run `make setup`, {otherwise}") from None
    return wandb
