"""A small SAM, trained on procedural scenes with exact masks, and how well its automatic masks find what is there.

    python -m tests.benchmarks.tiny_sam

It proves the path of the segment-anything oracle where no published checkpoint can be had: the model is built from the
package's own modules, trained for about four minutes of one core, saved in the official layout (a plain state dict)
under runs/oracle/ by the fingerprint of its recipe, and loaded by path as any checkpoint is. Training follows the
paper (arXiv:2304.02643, appendix A) in what matters: focal and dice loss 20:1 on the best of three masks a point, and
a regression of each mask's IoU; there is one click a point and no later round of clicks.
"""

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from clipsan.pipeline.core.commit import fingerprint
from clipsan.stages.oracle.sam import SamConfig
from clipsan.stages.oracle.sam_layout import PIXEL_MEAN, PIXEL_STD, DecoderLayout, EncoderLayout, build_sam
from clipsan.stages.oracle.superpixels import Superpixels, SuperpixelsConfig
from clipsan.stages.scenes.scene import Scene, SceneConfig, render
from tests.benchmarks.figures import ORACLE_COMMANDS
from tests.benchmarks.oracle_quality import Photo, measure
from tests.benchmarks.results import record

FOLDER = Path(__file__).resolve().parents[2] / "runs" / "oracle"
COMMAND = "python -m tests.benchmarks.tiny_sam"
"""What fills the file of figures; the rows on photos come from the first."""
SET = "scenes"
SIDE_PX = 64
UNSEEN = SceneConfig(count=100, side_px=SIDE_PX, seed=1_000)
"""Scenes that no training sees: another seed."""

ENCODER = EncoderLayout(
    grid=16, patch_px=4, width=96, depth=4, heads=3, mlp_width=288, window=8, global_blocks=(1, 3), channels=128
)
DECODER = DecoderLayout(channels=128, mask_channels=8, depth=2, mlp_width=256, quality_width=64)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that the trained weights depend on."""

    steps: int = 400
    images: int = 8
    """Scenes a step."""
    points: int = 6
    """Clicks a scene: half on things, half anywhere."""
    rate: float = 1e-3
    """Peak learning rate."""
    seed: int = 0


def points_of(masks: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw clicks on `[H, W] uint8` masks: half on things, half anywhere.

    Returns:
        `[count, 2] float32`, (x, y) of pixel centres, and what each shows, `[count, H, W] bool`; the background is one.
    """
    inside = np.flatnonzero(masks)
    chosen = rng.integers(masks.size, size=count)
    if inside.size:
        chosen[: count // 2] = rng.choice(inside, count // 2)
    rows, columns = np.divmod(chosen, masks.shape[1])
    truth = masks[None] == masks[rows, columns][:, None, None]
    return np.stack([columns, rows], axis=1).astype(np.float32) + 0.5, truth


def point_loss(logits: torch.Tensor, quality: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return SAM's loss of some clicks.

    Args:
        logits: `[P, 3, H, W] float32`, three masks a click.
        quality: `[P, 3] float32`, the model's estimate of their IoU.
        truth: `[P, H, W] float32`, 0 or 1.
    """
    target = truth[:, None].expand_as(logits)
    plain = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    focal = (plain * (1 - torch.exp(-plain)) ** 2).mean((2, 3))
    share = torch.sigmoid(logits)
    dice = 1 - (2 * (share * target).sum((2, 3)) + 1) / (share.sum((2, 3)) + target.sum((2, 3)) + 1)
    hard = logits > 0
    both = (hard & (target > 0)).sum((2, 3))
    actual = both / (hard | (target > 0)).sum((2, 3)).clamp(min=1)
    return (20 * focal + dice).min(1).values.mean() + functional.mse_loss(quality, actual)


def train(recipe: Recipe) -> dict[str, torch.Tensor]:
    """Return the state dict of a SAM trained by a recipe."""
    torch.manual_seed(recipe.seed)
    model = build_sam(ENCODER, DECODER)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=recipe.steps, pct_start=0.1)
    scenes = SceneConfig(count=recipe.steps * recipe.images, side_px=SIDE_PX, seed=recipe.seed)
    mean, spread = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    rng = np.random.default_rng(recipe.seed)
    for step in range(recipe.steps):
        batch = [render(step * recipe.images + number, scenes) for number in range(recipe.images)]
        pixels = torch.stack([torch.from_numpy(scene.rgb).permute(2, 0, 1).float() for scene in batch])
        embeddings = model.image_encoder((pixels - mean) / spread)
        loss = torch.zeros(())
        for embedding, scene in zip(embeddings.split(1), batch, strict=True):
            points, truth = points_of(scene.masks, recipe.points, rng)
            clicks = (torch.from_numpy(points)[:, None], torch.ones(recipe.points, 1))
            sparse, dense = model.prompt_encoder(points=clicks, boxes=None, masks=None)
            logits, quality = model.mask_decoder(
                image_embeddings=embedding,
                image_pe=model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            loss = loss + point_loss(logits, quality, torch.from_numpy(truth).float()) / recipe.images
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == recipe.steps - 1:
            sys.stderr.write(f"step {step}: loss {loss.item():.3f}\n")
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def checkpoint(recipe: Recipe) -> Path:
    """Return the path of a recipe's weights, trained now where they are not there yet."""
    mark = fingerprint({"recipe": asdict(recipe), "encoder": asdict(ENCODER), "decoder": asdict(DECODER)})
    path = FOLDER / f"tiny-sam-{mark[:12]}.pth"
    if not path.is_file():
        FOLDER.mkdir(parents=True, exist_ok=True)
        started = time.process_time()
        fresh = path.with_suffix(".tmp")
        torch.save(train(recipe), fresh)
        fresh.replace(path)
        sys.stderr.write(f"trained in {time.process_time() - started:.0f} s of one core\n")
    return path


def labelled(scene: Scene) -> Photo:
    """Return a scene as a picture whose segments are its things."""
    names = {number: thing.concept for number, thing in enumerate(scene.things, start=1)}
    return Photo(scene.rgb, scene.masks.astype(np.int64), names)


def main() -> int:
    """Train the small SAM where it is not there yet, and store its figures beside those of the superpixels."""
    torch.set_num_threads(1)
    trained = SamConfig(
        path=str(checkpoint(Recipe())),
        points_per_side=10,
        points_per_batch=100,
        # A model of four minutes rates masks of small things near 0; chosen on scenes of a third seed, 999.
        pred_iou_thresh=0.0,
        stability_score_thresh=0.0,
    )
    known = [labelled(render(index, UNSEEN)) for index in range(UNSEEN.count)]
    for name, oracle in (("sam", trained.build("cpu")), ("superpixels", Superpixels(SuperpixelsConfig()))):
        row = {**measure(name, oracle, known), "set": SET}
        record("oracle", [row], command=ORACLE_COMMANDS)
        sys.stdout.write(" ".join(f"{field}={value}" for field, value in row.items()) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
