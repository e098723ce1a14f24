"""The detection task: average precision against a brute-force peer (oracle Q14), matching, decoding and the images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from polyloom.methods.silu import detection as d


def brute_force_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Count by areas, one pair at a time."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return float(width * height / area)


def brute_force_ap(detections: list[tuple[int, float, np.ndarray]], truths: list[tuple[int, np.ndarray]]) -> float:
    """Walk down the ranking and integrate precision over recall at every point (VOC devkit, 2010 and later)."""
    order = sorted(range(len(detections)), key=lambda i: -detections[i][1])
    claimed: set[int] = set()
    points = []
    hits = 0
    for rank, index in enumerate(order, 1):
        image, _, box = detections[index]
        overlaps = [(brute_force_iou(box, t), -j) for j, (where, t) in enumerate(truths) if where == image]
        if overlaps:
            best, negative = max(overlaps)
            if best >= 0.5 and -negative not in claimed:
                claimed.add(-negative)
                hits += 1
        points.append((hits / len(truths), hits / rank))
    area = previous = 0.0
    for recall in sorted({r for r, _ in points}):
        area += (recall - previous) * max(p for r, p in points if r >= recall)
        previous = recall
    return area


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    images, places, objects = 4, 7, 3
    corner = random.integers(0, 20, (images, objects, 2))
    truth = np.concatenate([corner, corner + random.integers(5, 11, (images, objects, 1))], 2).astype(float)
    truth_classes = np.where(random.random((images, objects)) < 0.8, random.integers(0, 3, (images, objects)), -1)
    copied = random.integers(0, objects, (images, places))
    boxes = truth[np.arange(images)[:, None], copied] + random.normal(0, 1.2, (images, places, 4))
    classes = np.where(random.random((images, places)) < 0.9, random.integers(0, 3, (images, places)), -1)
    right = random.random((images, places)) < 0.6
    classes = np.where(right & (classes >= 0), truth_classes[np.arange(images)[:, None], copied], classes)
    scores = -np.sort(-random.random((images, places)), axis=1)
    return boxes, classes, np.where(classes >= 0, scores, 0.0), truth, truth_classes


def test_average_precision_equals_brute_force_on_200_random_cases() -> None:
    compared = 0
    for seed in range(200):
        boxes, classes, scores, truth, truth_classes = random_case(seed)
        expected = []
        for kind in range(3):
            found = [(i, scores[i, k], boxes[i, k]) for i, k in np.ndindex(classes.shape) if classes[i, k] == kind]
            objects = [(i, truth[i, j]) for i, j in np.ndindex(truth_classes.shape) if truth_classes[i, j] == kind]
            if objects:
                expected.append(brute_force_ap(found, objects))
        ours = d.mean_average_precision(boxes, classes, scores, truth, truth_classes)
        assert ours == pytest.approx(np.mean(expected), abs=1e-12)
        compared += 0.0 < ours < 1.0
    assert compared > 150, "most cases must be neither empty nor perfect"


def test_perfect_none_and_duplicate_detections() -> None:
    truth = np.array([[[2, 2, 10, 10], [15, 15, 25, 25]]], dtype=float)
    kinds = np.array([[0, 0]])
    scores = np.array([[0.9, 0.8]])
    assert d.mean_average_precision(truth, kinds, scores, truth, kinds) == 1.0
    assert d.mean_average_precision(truth, np.full((1, 2), -1), scores, truth, kinds) == 0.0
    assert math.isnan(d.mean_average_precision(truth, kinds, scores, truth, np.full((1, 2), -1)))
    # Two boxes on the first object: the second is a false positive, so AP = 1/2 * 1.
    twice = np.stack([truth[:, 0], truth[:, 0]], 1)
    hits = d.match_detections(twice, np.ones((1, 2), dtype=bool), truth, np.ones((1, 2), dtype=bool))
    assert hits.tolist() == [[1.0, 0.0]]
    assert d.mean_average_precision(twice, kinds, scores, truth, kinds) == 0.5


def test_average_precision_by_hand() -> None:
    # Ranking: hit, miss, hit of 2 objects: 1/2 * 1 + 1/2 * 2/3.
    value = d.average_precision(np.array([0.9, 0.8, 0.7]), np.array([1.0, 0.0, 1.0]), 2)
    assert value == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert math.isnan(d.average_precision(np.zeros(0), np.zeros(0), 0))


def test_intersection_over_union_by_hand() -> None:
    box = np.array([0.0, 0.0, 4.0, 4.0])
    others = np.array([[2.0, 0.0, 6.0, 4.0], [4.0, 4.0, 8.0, 8.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 4.0, 4.0]])
    assert d.intersection_over_union(box, others) == pytest.approx([8 / 24, 0.0, 0.0, 1.0])


def test_decoding_the_targets_finds_every_object() -> None:
    scenes = d.make_scenes(60, seed=3, split="test")
    outputs = torch.full((60, d.HEAD_CHANNELS, d.GRID_SIZE, d.GRID_SIZE), -20.0)
    outputs[:, :3] += 40.0 * scenes.targets[:, :3]
    outputs[:, 3:7] = scenes.targets[:, 3:]
    boxes, classes, scores = d.decode(outputs)
    assert ((classes >= 0).sum(1) == (scenes.classes >= 0).sum(1)).all()
    assert d.mean_average_precision(boxes, classes, scores, scenes.boxes, scenes.classes) == 1.0


def test_decode_survives_a_diverged_model() -> None:
    boxes, classes, scores = d.decode(torch.full((2, d.HEAD_CHANNELS, 16, 16), math.nan))
    scenes = d.make_scenes(2, seed=0, split="test")
    assert (classes == -1).all()
    assert d.mean_average_precision(boxes, classes, scores, scenes.boxes, scenes.classes) == 0.0


def test_scenes_are_as_described() -> None:
    scenes = d.make_scenes(100, seed=0, split="train")
    again, other = d.make_scenes(100, seed=0, split="train"), d.make_scenes(100, seed=0, split="test")
    assert torch.equal(scenes.images, again.images)
    assert not torch.equal(scenes.images, other.images)
    real = scenes.classes >= 0
    sides = scenes.boxes[real][:, 2:] - scenes.boxes[real][:, :2]
    assert ((sides >= 5) & (sides <= 10)).all()
    assert ((scenes.boxes[real] >= 0) & (scenes.boxes[real] <= d.IMAGE_SIZE)).all()
    assert set(np.unique(scenes.classes[real])) == {0, 1, 2}
    assert ((real.sum(1) >= 1) & (real.sum(1) <= 3)).all()
    assert (scenes.targets[:, :3].sum((1, 2, 3)).numpy() == real.sum(1)).all()
    for boxes, present in zip(scenes.boxes, real, strict=True):
        overlap = d.intersection_over_union(boxes[present][:, None], boxes[present][None])
        assert np.allclose(overlap, np.eye(present.sum()))


def test_loss_is_least_for_the_right_answer_and_per_model() -> None:
    scenes = d.make_scenes(8, seed=1, split="train")
    right = torch.full((8, d.HEAD_CHANNELS, 16, 16), -12.0)
    right[:, :3] += 24.0 * scenes.targets[:, :3]
    right[:, 3:7] = scenes.targets[:, 3:]
    both = torch.stack([right, torch.zeros_like(right)])
    targets = scenes.targets.expand(2, *scenes.targets.shape)
    losses = d.detection_loss(both, targets)
    assert losses[0] < 1e-6
    assert losses[1] > 1.0
    assert torch.allclose(losses[1:], d.detection_loss(both[1:], targets[1:]))
