"""One training step as the origin takes it: adaptive centres, AdaFace's margins and the adaptive geometry margin.

Written from the description of the method and of its public training loop, operation by operation, so that a step of
ours can be timed beside it and its losses compared: float32, images and activations in (B, C, H, W) order of memory,
torch's PReLU, centres as a (D, C) parameter that autograd differentiates although no optimiser owns it (its gradient is
never zeroed, as published), the whole (B, C) matrix of logits with the margins written into it, torch's default
optimiser, and the loss read by the host every step.

Left out, because one process on one device does not need it: DistributedDataParallel around student, teacher and head.
The teacher's embeddings come in as rows, as ours do. Of several samples of one identity the last one moves the centre,
as indexed assignment does on the CPU.

Source: github.com/rayyichen310/adadistill_with_adaface_loss and fdbtrs/AdaDistill (arXiv:2407.01332), re-derived from
their formulas.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from adadistill.core.backbones.layers import ChannelPReLU


@dataclass(frozen=True, kw_only=True, slots=True)
class OriginConstants:
    """The origin's final recipe."""

    margin: float = 0.4
    logit_scale: float = 64.0
    quality_concentration: float = 0.333
    norm_momentum: float = 0.01
    eps: float = 1e-3
    geometry_weight: float = 1.0
    geometry_scale: float = 3.0
    geometry_warmup_epochs: float = 1.0


class OriginHead:
    """Centres, norm statistics and the dense logits.

    Args:
        class_centres: (C, D) where the centres start; copied.
    """

    def __init__(self, class_centres: Tensor, constants: OriginConstants | None = None) -> None:
        self.constants = constants or OriginConstants()
        self.centres = nn.Parameter(class_centres.T.contiguous().clone())  # (D, C)
        self.norm_mean = class_centres.new_tensor(20.0)
        self.norm_std = class_centres.new_tensor(100.0)

    def logits(self, embeddings: Tensor, labels: Tensor, teacher_embeddings: Tensor, fractional_epoch: float) -> Tensor:
        """(B, C) logits with the margins in them; moves centres and statistics.

        Args:
            embeddings: (B, D) raw, with gradient; teacher_embeddings: (B, D), any length.
            labels: (B,) int64.
        """
        constants = self.constants
        teacher = normalize(teacher_embeddings)
        norms = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)  # (B, 1)
        student = embeddings / norms  # (B, D)
        with torch.no_grad():
            student_teacher = (student * teacher).sum(1).clamp(-1.0, 1.0)  # (B,)
            own = self.centres[:, labels].T  # (B, D)
            confidence = cosine_similarity(own, teacher).clamp(1e-6, 1.0)
            momentum = (student_teacher * confidence).clamp(1e-6, 1.0)[:, None]
            self.centres[:, labels] = (momentum * own + (1.0 - momentum) * teacher).T
        limit = 1.0 - constants.eps
        cosine = (student @ normalize(self.centres, dim=0)).clamp(-limit, limit)  # (B, C)

        scaler = self._scaler(norms.detach(), confidence, student_teacher, fractional_epoch)
        rows = torch.arange(len(labels), device=labels.device)
        angle = torch.acos(cosine[rows, labels]) - constants.margin * scaler
        angle = angle.clamp(constants.eps, torch.pi - constants.eps)
        logits = cosine.clone()
        logits[rows, labels] = torch.cos(angle) - constants.margin * (1.0 + scaler)
        return constants.logit_scale * logits

    def _scaler(self, norms: Tensor, confidence: Tensor, student_teacher: Tensor, fractional_epoch: float) -> Tensor:
        """(B,) in [-1, 1] from (B, 1) norms and two (B,) cosines, after one more batch of norms."""
        constants = self.constants
        clipped = norms.clamp(0.001, 100.0)
        new = constants.norm_momentum
        self.norm_mean = new * clipped.mean() + (1.0 - new) * self.norm_mean
        self.norm_std = new * clipped.std() + (1.0 - new) * self.norm_std
        quality = constants.quality_concentration * (clipped - self.norm_mean) / (self.norm_std + constants.eps)
        ramp = min(1.0, max(0.0, fractional_epoch / constants.geometry_warmup_epochs))
        lag = confidence * (confidence - student_teacher).clamp(min=0.0)
        geometry = constants.geometry_weight * ramp * constants.geometry_scale * lag
        return (quality.squeeze(1) + geometry).clamp(-1.0, 1.0)


class OriginStep:
    """Student, head and optimiser, and the order in which a step uses them.

    Args:
        student: images -> (B, D) raw embeddings; copied, with torch's PReLUs in place of ours.
        class_centres: (C, D) where the centres start; copied.
    """

    def __init__(self, student: nn.Module, class_centres: Tensor, *, device: torch.device) -> None:
        self.student = with_torch_prelu(student).to(device=device)
        self.head = OriginHead(class_centres.to(device))
        self.optimiser = torch.optim.SGD(self.student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def run(
        self, images: Tensor, labels: Tensor, teacher_embeddings: Tensor, *, lr: float, fractional_epoch: float
    ) -> float:
        """Train on one batch, (B, 3, H, W) float32; its mean loss, for which the host waits."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.student.train()
        logits = self.head.logits(self.student(images), labels, teacher_embeddings, fractional_epoch)
        loss = cross_entropy(logits, labels)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 5.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.item()


def with_torch_prelu(network: nn.Module) -> nn.Module:
    """A copy of a network whose PReLUs are torch's own; same weights, same state dict."""
    plain = copy.deepcopy(network)
    for module in list(plain.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ChannelPReLU):
                prelu = nn.PReLU(child.num_parameters)
                prelu.weight = child.weight
                setattr(module, name, prelu)
    return plain
