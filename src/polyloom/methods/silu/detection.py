"""Detection on made images: squares, discs and triangles, an anchor-free head, its decoding, and AP at IoU 0.5."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from polyloom.core.seeding import numpy_generator

Floats = NDArray[np.float64]
CLASSES = ("square", "disc", "triangle")
IMAGE_SIZE, GRID_SIZE, STRIDE = 32, 16, 2
MAX_OBJECTS = 3
MAX_DETECTIONS = 12
SCORE_THRESHOLD = 0.05
DISTANCE_UNIT = 8.0
# 3 heat maps, 4 distances, and one channel that is not read: grouped convolutions are fastest in multiples of 8.
HEAD_CHANNELS = 8
HEAD_BIAS = torch.tensor([-3.0] * 3 + [0.5] * 4 + [0.0])


@dataclass(frozen=True)
class Scenes:
    """Images with their objects.

    Attributes:
        images: [images, 1, 32, 32].
        boxes: [images, objects, 4] left, top, right, bottom in pixels.
        classes: [images, objects], -1 where there is no object.
        targets: [images, 7, 16, 16] heat maps and distances.
    """

    images: Tensor
    boxes: Floats
    classes: NDArray[np.int64]
    targets: Tensor


def _shape_mask(kind: int, left: int, top: int, size: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] + 0.5
    inside = (x > left) & (x < left + size) & (y > top) & (y < top + size)
    if CLASSES[kind] == "disc":
        inside &= (x - left - size / 2) ** 2 + (y - top - size / 2) ** 2 <= (size / 2) ** 2
    elif CLASSES[kind] == "triangle":
        inside &= np.abs(x - left - size / 2) <= (y - top) / 2
    return np.asarray(inside, dtype=bool)


def make_scenes(num_images: int, seed: int, split: str, noise: float = 0.15) -> Scenes:
    """Draw images with 1 to 3 objects that do not overlap, of side 5 to 10 and grey 0.6 to 1, on noise.

    Args:
        num_images: how many.
        seed: of the run.
        split: name of the stream; splits share no draws.
        noise: standard deviation of the Gaussian noise.
    """
    random = numpy_generator(seed, "shapes", split)
    images = random.normal(0.0, noise, (num_images, IMAGE_SIZE, IMAGE_SIZE)).astype(np.float32)
    boxes = np.zeros((num_images, MAX_OBJECTS, 4))
    classes = np.full((num_images, MAX_OBJECTS), -1, dtype=np.int64)
    for index in range(num_images):
        taken = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=bool)
        placed = 0
        for _ in range(int(random.integers(1, MAX_OBJECTS + 1))):
            kind, size = int(random.integers(len(CLASSES))), int(random.integers(5, 11))
            left, top = (int(value) for value in random.integers(0, IMAGE_SIZE - size + 1, 2))
            grey = random.uniform(0.6, 1.0)
            if taken[top : top + size, left : left + size].any():
                continue
            taken[top : top + size, left : left + size] = True
            images[index][_shape_mask(kind, left, top, size)] += grey
            boxes[index, placed], classes[index, placed] = (left, top, left + size, top + size), kind
            placed += 1
    return Scenes(torch.from_numpy(images)[:, None], boxes, classes, _targets(boxes, classes))


def _targets(boxes: Floats, classes: NDArray[np.int64]) -> Tensor:
    """Set the cell of every centre to 1 in its class's map, and the distances to the sides there."""
    targets = np.zeros((len(boxes), 7, GRID_SIZE, GRID_SIZE), dtype=np.float32)
    image, slot = np.nonzero(classes >= 0)
    box = boxes[image, slot]
    centre = (box[:, :2] + box[:, 2:]) / 2
    column, row = (np.minimum(centre // STRIDE, GRID_SIZE - 1)).astype(int).T
    point = np.stack([column, row], 1) * STRIDE + STRIDE / 2
    targets[image, classes[image, slot], row, column] = 1.0
    distances = np.concatenate([point - box[:, :2], box[:, 2:] - point], 1) / DISTANCE_UNIT
    for side in range(4):
        targets[image, 3 + side, row, column] = distances[:, side]
    return torch.from_numpy(targets)


def detection_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return focal-weighted binary cross-entropy (exponent 2) plus smooth L1 of the distances, per object.

    Args:
        outputs: [models, batch, 8, 16, 16].
        targets: [models, batch, 7, 16, 16].

    Returns:
        [models].
    """
    heat, wanted = outputs[:, :, :3], targets[:, :, :3]
    entropy = F.binary_cross_entropy_with_logits(heat, wanted, reduction="none")
    focus = (torch.sigmoid(heat) - wanted).square()
    centres = wanted.amax(2, keepdim=True)
    num_objects = wanted.flatten(1).sum(1).clamp_min(1.0)
    distance = F.smooth_l1_loss(outputs[:, :, 3:7], targets[:, :, 3:], reduction="none", beta=0.1) * centres
    return (entropy * focus).flatten(1).sum(1) / num_objects + distance.flatten(1).sum(1) / num_objects


def decode(outputs: Tensor) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Turn head outputs into detections: 3x3 peaks of the heat maps with a score over 0.05.

    Args:
        outputs: [images, 8, 16, 16].

    Returns:
        boxes [images, detections, 4], classes and scores [images, detections], by falling score; empty places have
        class -1 and score 0.
    """
    heat = torch.sigmoid(outputs[:, :3].nan_to_num(-30.0))
    peaks = torch.where(F.max_pool2d(heat, 3, stride=1, padding=1) == heat, heat, torch.zeros_like(heat))
    scores, places = peaks.flatten(1).topk(MAX_DETECTIONS, dim=1)
    cell = places % GRID_SIZE**2
    x, y = cell % GRID_SIZE * STRIDE + STRIDE / 2, cell // GRID_SIZE * STRIDE + STRIDE / 2
    sides = outputs[:, 3:7].flatten(2).gather(2, cell[:, None].expand(-1, 4, -1)) * DISTANCE_UNIT
    boxes = torch.stack([x - sides[:, 0], y - sides[:, 1], x + sides[:, 2], y + sides[:, 3]], -1)
    found = scores > SCORE_THRESHOLD
    classes = torch.where(found, places // GRID_SIZE**2, torch.full_like(places, -1))
    return boxes.double().numpy(), classes.numpy(), torch.where(found, scores, 0.0).double().numpy()


def intersection_over_union(a: Floats, b: Floats) -> Floats:
    """Return the IoU of boxes [..., 4] with boxes [..., 4], broadcast; 0 for empty ones."""
    overlap = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0.0, None).prod(-1)
    areas = [np.clip(box[..., 2:] - box[..., :2], 0.0, None).prod(-1) for box in (a, b)]
    union = areas[0] + areas[1] - overlap
    return np.asarray(np.divide(overlap, union, out=np.zeros_like(union), where=union > 0))


def match_detections(boxes: Floats, present: NDArray[np.bool_], truth: Floats, real: NDArray[np.bool_]) -> Floats:
    """Mark the detections that find an object: IoU of at least 0.5 with their best object, and first to claim it.

    Args:
        boxes: [images, detections, 4] by falling score.
        present: [images, detections] false for empty places.
        truth: [images, objects, 4].
        real: [images, objects] false for empty places.

    Returns:
        [images, detections], 1 for a true positive, else 0; a second box on one object is a false positive.
    """
    overlap = np.where(real[:, None], intersection_over_union(boxes[:, :, None], truth[:, None]), -1.0)
    hits = np.zeros(present.shape)
    claimed = np.zeros(real.shape, dtype=bool)
    images = np.arange(len(boxes))
    for place in range(boxes.shape[1]):
        best = overlap[:, place].argmax(1)
        hit = present[:, place] & (overlap[images, place, best] >= 0.5) & ~claimed[images, best]
        claimed[images[hit], best[hit]] = True
        hits[hit, place] = 1.0
    return hits


def average_precision(scores: Floats, hits: Floats, num_objects: int) -> float:
    """Return the area under the precision-recall curve, every point counted (VOC 2010 and later).

    Args:
        scores: [detections].
        hits: [detections] 1 for true positives.
        num_objects: objects to find.

    Returns:
        AP in [0, 1]; NaN when there is nothing to find.
    """
    if num_objects == 0:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(hits[order])
    precision = found / np.arange(1, found.size + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(found, prepend=0.0) / num_objects
    return float((steps * envelope).sum())


def mean_average_precision(
    boxes: Floats, classes: NDArray[np.int64], scores: Floats, truth: Floats, truth_classes: NDArray[np.int64]
) -> float:
    """Return AP at IoU 0.5, averaged over the classes that the truth holds.

    Args:
        boxes: [images, detections, 4] by falling score within an image.
        classes: [images, detections], -1 for empty places.
        scores: [images, detections].
        truth: [images, objects, 4].
        truth_classes: [images, objects], -1 for empty places.
    """
    values = []
    for kind in range(len(CLASSES)):
        present, real = classes == kind, truth_classes == kind
        hits = match_detections(boxes, present, truth, real)
        if real.any():
            values.append(average_precision(scores[present], hits[present], int(real.sum())))
    return float(np.mean(values)) if values else float("nan")
