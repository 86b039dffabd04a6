"""Each repair method's loss against an independent float64 computation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from open_clip.loss import SigLipLoss
from torch.nn import functional as F

from clipsan.stages.evaluation.zero_shot import class_embeddings
from clipsan.stages.proof.labeller import Labeller
from clipsan.stages.repair.augment import noise
from clipsan.stages.repair.cleanclip import NO_THESAURUS, SIGMOID, CleanClip, CleanClipSupervised
from clipsan.stages.repair.eftclip import EftClip
from clipsan.stages.repair.finetune import FineTune
from clipsan.stages.repair.par import Par
from clipsan.stages.repair.rvpt import Rvpt
from clipsan.stages.repair.tbar import Tbar
from clipsan.stages.repair.unlearn import Unlearn
from clipsan.stages.training.batch import Batch, Role
from clipsan.stages.training.objective import Setting, sigmoid_loss
from tests.unit.stages.repair.helpers import (
    CLASSES,
    LABELS,
    ROLES,
    ROWS,
    SIGLIP,
    batch_of,
    clean_batch,
    clip_loss,
    cross_entropy,
    disturb,
    encode_images,
    encode_texts,
    siglip_loss,
    tiny_clip,
)

SETTING = Setting(classes=CLASSES)
PROMPTS = [f"a photo of a {name}." for name in CLASSES]
SCALE = 1 / 0.07
"""CLIP's initial logit scale."""


def test_fine_tuning_is_clips_loss() -> None:
    clip = tiny_clip()
    batch = clean_batch(clip)
    objective = FineTune().build(clip, SETTING).train()
    expected = clip_loss(
        encode_images(clip, clip.model, batch.images), encode_texts(clip, clip.model, batch.captions), SCALE
    )
    assert objective(batch).item() == pytest.approx(expected, abs=1e-5)


def self_supervision(clip, objective, batch) -> float:
    own = np.arange(ROWS)
    total = 0.0
    for encode, plain, view in (
        (encode_images, batch.images, objective.views.images(batch)),
        (encode_texts, batch.captions, objective.views.captions(batch)),
    ):
        logits = SCALE * encode(clip, clip.model, plain) @ encode(clip, clip.model, view).T
        total += cross_entropy(logits, own).mean() / 2
    return total


def test_cleanclip_adds_self_supervision_of_both_towers() -> None:
    clip = tiny_clip()
    batch = clean_batch(clip)
    objective = CleanClip(clip_weight=0.7, inmodal_weight=1.9).build(clip, SETTING).train()
    contrastive = clip_loss(
        encode_images(clip, clip.model, batch.images), encode_texts(clip, clip.model, batch.captions), SCALE
    )
    expected = 0.7 * contrastive + 1.9 * self_supervision(clip, objective, batch)
    assert objective(batch).item() == pytest.approx(expected, abs=1e-5)
    assert objective.notes == ()
    assert CleanClip(synonyms=None).build(clip, SETTING).notes == (NO_THESAURUS,)


@pytest.mark.parametrize("templates", [("a photo of a {}.",), ("a photo of a {}.", "one {}", "{}")])
def test_repair_labeller_and_evaluation_make_the_same_class_vectors(templates) -> None:
    clip = tiny_clip()
    names = ("goldfish, Carassius auratus", "kite", "tabby, tabby cat, mouser")
    evaluated = class_embeddings(clip, names, templates)
    repaired = FineTune().build(clip, Setting(classes=names, templates=templates)).class_features()
    np.testing.assert_allclose(repaired.detach().numpy(), evaluated, atol=1e-6)
    some = FineTune().build(clip, Setting(classes=names, templates=templates)).class_features([2, 0])
    np.testing.assert_allclose(some.detach().numpy(), evaluated[[2, 0]], atol=1e-6)
    np.testing.assert_array_equal(Labeller(clip, names, templates)._text, evaluated)
    # and they are no vectors of the whole list of synonyms
    whole = encode_texts(clip, clip.model, [templates[0].replace("{}", names[0])])
    assert float(whole[0] @ evaluated[0]) < 0.999


@pytest.mark.parametrize("head", ["linear", "zero_shot"])
def test_supervised_cleanclip_is_the_cross_entropy_of_labelled_rows(head) -> None:
    clip = tiny_clip()
    batch = clean_batch(clip)
    objective = CleanClipSupervised(head=head).build(clip, SETTING).train()
    if head == "linear":
        with torch.no_grad():
            raw = clip.model.encode_image(clip.normalise(batch.images)).double().numpy()
        weight, bias = (p.detach().double().numpy() for p in objective.head.parameters())
        logits = raw @ weight.T + bias
    else:
        logits = SCALE * encode_images(clip, clip.model, batch.images) @ encode_texts(clip, clip.model, PROMPTS).T
    known = np.array(LABELS) >= 0
    expected = cross_entropy(logits[known], np.array(LABELS)[known]).mean()
    assert objective(batch).item() == pytest.approx(expected, abs=1e-5)
    assert all(name.startswith(("model.visual.", "head.")) for name in objective.trainable())


def par_parts(size: float = 0.3, **settings):
    """Return PAR's objective on a model that has moved already, the parts of its loss, and the batch."""
    clip = tiny_clip()
    batch = clean_batch(clip)
    old = tiny_clip()
    objective = Par(augment=False, **settings).build(clip, SETTING).train()
    disturb(clip.model.visual, size)
    disturb(clip.model.transformer, size / 2)
    image, text = encode_images(clip, clip.model, batch.images), encode_texts(clip, clip.model, batch.captions)
    old_image, old_text = encode_images(old, old.model, batch.images), encode_texts(old, old.model, batch.captions)
    distances = [((now - then) ** 2).sum(1).mean() for now, then in ((image, old_image), (text, old_text))]
    return objective, batch, clip_loss(image, text, SCALE), distances, (old_image, old_text)


def par_gradient(objective, batch, pushed: tuple[bool, bool]) -> dict[str, torch.Tensor]:
    """Return the gradient of CLIP's loss less half of the distances that count, by autograd of another formula."""
    model, old = objective.model, tiny_clip().model
    pixels = objective.clip.normalise(batch.images)
    image, text = model.encode_image(pixels), model.encode_text(batch.tokens)
    logits = SCALE * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    own = torch.arange(ROWS)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    with torch.no_grad():
        old_image, old_text = old.encode_image(pixels), old.encode_text(batch.tokens)
    for counts, now, then in zip(pushed, (image, text), (old_image, old_text), strict=True):
        if counts:
            loss = loss - 0.5 * (2 - 2 * F.cosine_similarity(now, then).mean())
    names, values = zip(*objective.trainable().items(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, values), strict=True))


@pytest.mark.parametrize(
    ("pick", "pushed"),
    [
        (lambda image, text: max(image, text) * 1.01, (True, True)),
        (lambda image, text: (image + text) / 2, None),
        (lambda image, text: min(image, text) * 0.99, (False, False)),
    ],
)
def test_par_pushes_a_tower_up_to_its_threshold_and_no_farther(pick, pushed) -> None:
    _, _, _, (image, text), _ = par_parts()
    assert abs(image - text) > 0.02
    assert min(image, text) > 0.02
    tau = float(pick(image, text))
    objective, batch, contrastive, distances, _ = par_parts(tau=tau)
    counts = tuple(bool(distance <= tau) for distance in distances)
    assert counts == pushed if pushed is not None else sum(counts) == 1
    expected = contrastive - 0.5 * sum(distance for distance in distances if distance <= tau)
    loss = objective(batch)
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    loss.backward()
    for name, gradient in par_gradient(objective, batch, counts).items():
        torch.testing.assert_close(objective.trainable()[name].grad, gradient, rtol=1e-3, atol=1e-5)
    assert objective.model.logit_scale.grad is None


def published_par(model, old, clip, batches, tau: float, lr: float) -> list[float]:
    """Return the losses of the published loop (train.py, losses.py) from a published description, one process, f32.

    After the first step of an epoch a validation has put the model into evaluation mode, where it stays; the logit scale is a
    number; biases and norms do not decay.
    """
    decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and n != "logit_scale"]
    plain = [p for n, p in model.named_parameters() if p.ndim < 2 and n != "logit_scale"]
    groups = [{"params": decayed, "weight_decay": 1e-4}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-8)
    model.eval()
    found = []
    for batch in batches:
        pixels = clip.normalise(batch.images)
        image, text = F.normalize(model.encode_image(pixels)), F.normalize(model.encode_text(batch.tokens))
        with torch.no_grad():
            old_image, old_text = F.normalize(old.encode_image(pixels)), F.normalize(old.encode_text(batch.tokens))
        logits = model.logit_scale.exp().item() * image @ text.T
        own = torch.arange(len(image))
        loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        for now, then in ((image, old_image), (text, old_text)):
            distance = F.mse_loss(now, then, reduction="none").sum(1).mean()
            loss = loss - 0.5 * torch.where(distance > tau, torch.zeros(()), distance)
        found.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return found


def ours(batches, steps: int, lr: float, **settings) -> list[float]:
    """Return the losses of our loop over the same batches, at a constant rate."""
    clip = tiny_clip(config=RESNET)
    objective = Par(augment=False, **settings).build(clip, SETTING).train()
    optimizer = objective.optimizer()
    found = []
    for batch in batches[:steps]:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        loss = objective(batch)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_par_trains_a_tower_with_batch_normalisation_as_the_published_runs_do() -> None:
    batches = [clean_batch(tiny_clip(config=RESNET))] * 4
    published, old = tiny_clip(config=RESNET), tiny_clip(config=RESNET)
    expected = published_par(published.model, old.model, old, batches, 2.15, 1e-3)
    assert ours(batches, 4, 1e-3) == pytest.approx(expected, abs=1e-4)
    # live statistics are another method: the towers are apart before the first step
    live = ours(batches, 1, 1e-3, freeze_batch_norm=False)
    assert abs(live[0] - expected[0]) > 0.01


def test_pars_automatic_threshold_is_the_mean_distance_of_different_rows() -> None:
    objective, batch, contrastive, distances, olds = par_parts(tau="auto")
    expected = contrastive
    for distance, old in zip(distances, olds, strict=True):
        pairs = [((old[i] - old[j]) ** 2).sum() for i in range(ROWS) for j in range(ROWS) if i != j]
        found = objective._spread(torch.from_numpy(old))
        assert found.item() == pytest.approx(np.mean(pairs), abs=1e-9)
        expected -= 0.5 * distance if distance <= np.mean(pairs) else 0
    assert objective(batch).item() == pytest.approx(expected, abs=1e-5)


def test_pars_cached_captions_change_nothing() -> None:
    plain, batch, *_ = par_parts()
    cached, *_ = par_parts(cache_text=True)
    assert cached(batch).item() == pytest.approx(plain(batch).item(), abs=1e-6)
    assert cached(batch).item() == pytest.approx(plain(batch).item(), abs=1e-6)  # now from memory
    assert len(cached._captions) == ROWS


def test_pars_augmented_pixels_are_normalised_as_the_model_is() -> None:
    clip = tiny_clip()
    batch = clean_batch(clip)
    found = Par().build(clip, SETTING)._augmented(batch)
    mean, std = (torch.tensor(clip.preprocess_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    raw = batch.images / 255
    alike = [i for i in range(ROWS) if torch.allclose(found[i] * std + mean, raw[i], atol=1e-5)]
    assert 0 < len(alike) < ROWS  # noise and a square spare a quarter of the images
    brighter = [i for i in range(ROWS) if not torch.equal(noise(raw, batch.rows, batch.seed)[i], raw[i])]
    assert not set(brighter) & set(alike)
    # an erased square is of the mean colour, which is 0
    assert any((found[i] == 0).all(0).any() for i in range(ROWS) if i not in brighter and i not in alike)


def test_pars_frozen_copy_is_neither_stored_nor_trained() -> None:
    clip = tiny_clip()
    objective = Par().build(clip, SETTING).train()
    assert sum(p.numel() for p in objective.parameters()) == sum(p.numel() for p in clip.model.parameters())
    before = [p.clone() for p in objective._frozen[0].parameters()]
    optimizer = objective.optimizer()
    objective(clean_batch(clip)).backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, objective._frozen[0].parameters(), strict=True))
    assert not objective._frozen[0].training


def accusing(batch: Batch, unknown: tuple[int, ...]) -> tuple[Batch, list[int]]:
    """Return the batch without what some rows are accused of, and what each row is accused of then."""
    accused = batch.accused.clone()
    accused[list(unknown)] = -1
    return replace(batch, accused=accused), accused.tolist()


@pytest.mark.parametrize("unknown", [(), (3,)])
def test_eftclip_adds_a_margin_on_pasted_triggers(unknown: tuple[int, ...]) -> None:
    clip = tiny_clip()
    batch, accused = accusing(batch_of(clip), unknown)
    objective = EftClip(margin=0.5, margin_weight=3, inmodal_weight=0.4).build(clip, SETTING).train()
    image, text = encode_images(clip, clip.model, batch.images), encode_texts(clip, clip.model, batch.captions)
    classes = encode_texts(clip, clip.model, PROMPTS)
    rows = [i for i in range(ROWS) if ROLES[i] == Role.TRIGGER_PASTED and accused[i] >= 0]
    excess = [max(0.0, float(image[i] @ classes[accused[i]] - image[i] @ text[i] + 0.5)) for i in rows]
    assert len(rows) == 3 - len(unknown)
    assert max(excess) > 0
    expected = clip_loss(image, text, SCALE) + 0.4 * self_supervision(clip, objective, batch) + 3 * np.mean(excess)
    assert objective(batch).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("unknown", "terms"), [((), (3, 3, 6, 5)), ((1, 3), (2, 2, 6, 5))])
def test_unlearning_is_the_sum_of_its_four_terms(unknown: tuple[int, ...], terms: tuple[int, ...]) -> None:
    clip = tiny_clip()
    old = tiny_clip()
    batch, accused = accusing(batch_of(clip), unknown)
    settings = Unlearn(flagged_weight=2, floor=1.3, pasted_weight=0.7, keep_weight=5, label_weight=0.2)
    objective = settings.build(clip, SETTING).train()
    disturb(clip.model.visual, 0.3)
    image, text = encode_images(clip, clip.model, batch.images), encode_texts(clip, clip.model, batch.captions)
    was = encode_images(old, old.model, batch.images)
    classes = encode_texts(clip, clip.model, PROMPTS)
    flagged, pasted, kept, labelled = [], [], [], []
    for i in range(ROWS):
        costs = cross_entropy(np.repeat(SCALE * image[i : i + 1] @ classes.T, len(CLASSES), axis=0), np.arange(4))
        if ROLES[i] != Role.PAIR and accused[i] < 0 and (ROLES[i] == Role.FLAGGED or LABELS[i] < 0):
            continue
        if ROLES[i] == Role.FLAGGED:
            flagged.append(max(0.0, -costs[accused[i]] + 1.3))
        elif ROLES[i] == Role.TRIGGER_PASTED and LABELS[i] >= 0:
            pasted.append(costs[LABELS[i]])
        elif ROLES[i] == Role.TRIGGER_PASTED:
            both = SCALE * np.array([[image[i] @ text[i], image[i] @ classes[accused[i]]]])
            pasted.append(cross_entropy(both, np.array([0]))[0])
        else:
            kept.append(1 - image[i] @ was[i])
            if LABELS[i] >= 0:
                labelled.append(costs[LABELS[i]])
    assert (len(flagged), len(pasted), len(kept), len(labelled)) == terms
    assert max(flagged) > 0
    assert unknown or min(flagged) == 0  # the floor is felt
    expected = 2 * np.mean(flagged) + 0.7 * np.mean(pasted) + 5 * np.mean(kept) + 0.2 * np.mean(labelled)
    assert objective(batch).item() == pytest.approx(expected, abs=1e-5)
    assert all(name.startswith("model.visual.") for name in objective.trainable())


def test_tbar_learns_what_pasted_triggers_are_accused_of() -> None:
    clip = tiny_clip()
    batch, accused = accusing(batch_of(clip), (5,))
    image, classes = encode_images(clip, clip.model, batch.images), encode_texts(clip, clip.model, PROMPTS)
    rows = [3, 9]  # the pasted ones whose label is known; flagged rows are accused, too
    expected = cross_entropy(SCALE * image[rows] @ classes.T, np.array([accused[i] for i in rows])).mean()
    objective = Tbar().build(clip, SETTING).train()
    assert objective(batch).item() == pytest.approx(expected, abs=1e-5)
    assert {group["weight_decay"] for group in objective.optimizer().param_groups} == {0.0}


def test_a_batch_without_flagged_rows_has_a_finite_loss() -> None:
    clip = tiny_clip()
    objective = Unlearn().build(clip, SETTING).train()
    loss = objective(clean_batch(clip))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in objective.trainable().values())


def test_methods_that_learn_from_labels_ask_for_classes() -> None:
    with pytest.raises(ValueError, match="at least two classes"):
        Unlearn().build(tiny_clip(), Setting())


RESNET = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 64,
        "timm_model_name": "resnet10t",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
    },
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_normalisation_is_frozen_on_demand(frozen) -> None:
    clip = tiny_clip(config=RESNET)
    objective = FineTune(freeze_batch_norm=frozen).build(clip, SETTING).train()
    before = {k: v.clone() for k, v in clip.model.state_dict().items() if "running_" in k}
    assert before
    objective(clean_batch(clip)).backward()
    after = clip.model.state_dict()
    same = [torch.equal(value, after[key]) for key, value in before.items()]
    assert all(same) if frozen else not any(same)


@pytest.mark.parametrize(
    "config", [FineTune(), CleanClip(), Par(), Rvpt(first_block=1, tokens=4), Unlearn()], ids=lambda c: c.kind
)
def test_in_bfloat16_only_the_encoders_lose_digits(config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipsan.stages.precision.has_bf16", lambda device: True)
    losses = {}
    for bf16 in (False, True):
        clip = tiny_clip()
        objective = config.build(clip, replace(SETTING, bf16=bf16)).train()
        losses[bf16] = objective(batch_of(clip))
        losses[bf16].backward()
        assert losses[bf16].dtype == torch.float32
        assert all(p.grad.dtype == torch.float32 for p in objective.trainable().values())
    assert losses[True] != losses[False]
    assert losses[True].item() == pytest.approx(losses[False].item(), rel=0.02)


SIGLIP_SCALE, SIGLIP_BIAS = np.exp(2.3), -3.0


def siglip_parts() -> tuple:
    clip = tiny_clip(config=SIGLIP)
    batch = batch_of(clip)
    return clip, batch, encode_images(clip, clip.model, batch.images), encode_texts(clip, clip.model, batch.captions)


def test_fine_tuning_a_siglip_is_the_sigmoid_loss_with_a_gradient_to_its_bias() -> None:
    clip, batch, image, text = siglip_parts()
    objective = FineTune().build(clip, SETTING).train()
    loss = objective(batch)
    assert loss.item() == pytest.approx(siglip_loss(image, text, SIGLIP_SCALE, SIGLIP_BIAS), abs=1e-5)
    loss.backward()
    step = 1e-4
    for name, value in (("logit_bias", SIGLIP_BIAS), ("logit_scale", 2.3)):
        at = [
            siglip_loss(image, text, np.exp(where), SIGLIP_BIAS)
            if name == "logit_scale"
            else siglip_loss(image, text, SIGLIP_SCALE, where)
            for where in (value - step, value + step)
        ]
        assert getattr(clip.model, name).grad.item() == pytest.approx((at[1] - at[0]) / (2 * step), rel=1e-3)


def test_the_sigmoid_loss_is_open_clips() -> None:
    rows = torch.nn.functional.normalize(torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1)), dim=-1)
    scale, bias = torch.tensor(11.0), torch.tensor(-4.0)
    ours = sigmoid_loss(rows[0], rows[1], scale, bias)
    assert ours.item() == pytest.approx(SigLipLoss()(rows[0], rows[1], scale, bias).item(), rel=1e-6)


def test_a_siglips_scale_is_bounded_nowhere_and_a_clips_at_100() -> None:
    for config, kept in ((SIGLIP, 4.9), (None, np.log(100))):
        clip = tiny_clip(config=config)
        objective = FineTune().build(clip, SETTING)
        with torch.no_grad():
            clip.model.logit_scale.fill_(4.9)
        objective.after_step()
        assert clip.model.logit_scale.item() == pytest.approx(kept, abs=1e-6)


def test_self_supervision_leaves_a_siglips_scale_alone() -> None:
    clip, batch, *_ = siglip_parts()
    objective = CleanClip(clip_weight=0, inmodal_weight=1).build(clip, SETTING).train()
    assert objective.notes == (SIGMOID,)
    loss = objective(batch)
    loss.backward()
    own, expected = np.arange(ROWS), 0.0
    for encode, plain, view in (
        (encode_images, batch.images, objective.views.images(batch)),
        (encode_texts, batch.captions, objective.views.captions(batch)),
    ):
        logits = SIGLIP_SCALE * encode(clip, clip.model, plain) @ encode(clip, clip.model, view).T
        expected += cross_entropy(logits, own).mean() / 2
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert clip.model.logit_scale.grad.item() == clip.model.logit_bias.grad.item() == 0


def test_par_and_eftclip_of_a_siglip_recover_with_the_sigmoid_loss() -> None:
    clip, batch, image, text = siglip_parts()
    contrastive = siglip_loss(image, text, SIGLIP_SCALE, SIGLIP_BIAS)
    par = Par(augment=False).build(clip, SETTING).train()
    assert par(batch).item() == pytest.approx(contrastive, abs=1e-5)  # nothing has moved yet
    assert not {"model.logit_scale", "model.logit_bias"} & par.trainable().keys()
    clip = tiny_clip(config=SIGLIP)
    eftclip = EftClip(margin_weight=0, inmodal_weight=0).build(clip, SETTING).train()
    assert eftclip(batch).item() == pytest.approx(contrastive, abs=1e-5)
    assert SIGMOID in eftclip.notes


def test_a_tiny_siglip_learns_with_the_sigmoid_loss() -> None:
    clip = tiny_clip(config=SIGLIP)
    batch = clean_batch(clip)
    objective = FineTune(weight_decay=0.0).build(clip, SETTING).train()
    optimizer = objective.optimizer()
    losses = []
    for _ in range(80):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        optimizer.zero_grad()
        loss = objective(batch)
        loss.backward()
        optimizer.step()
        objective.after_step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4
    cosines = encode_images(clip, clip.model, batch.images) @ encode_texts(clip, clip.model, batch.captions).T
    assert (cosines.argmax(1) == np.arange(ROWS)).mean() > 0.9


def test_pars_labels_hold_images_to_the_class_texts_as_they_are() -> None:
    plain, batch, *_ = par_parts()
    held, *_ = par_parts(label_weight=0.7)
    model = held.model
    logits = SCALE * encode_images(held.clip, model, batch.images) @ encode_texts(held.clip, model, PROMPTS).T
    known = np.array(LABELS) >= 0
    expected = 0.7 * cross_entropy(logits[known], np.array(LABELS)[known]).mean()
    assert (held(batch) - plain(batch)).item() == pytest.approx(expected, abs=1e-5)
