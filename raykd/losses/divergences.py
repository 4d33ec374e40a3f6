"""Divergences between two distributions over the same events, one value per position.

Every function takes log-probabilities student_NE and teacher_NE over E events (the vocabulary, or the teacher's
top-k and a bucket for the rest) and returns values_N in nats, in their type. `at_N` is the event of the target. The
gradient goes to the student alone. Where its form is short it is written down beside the value (`_known`): autograd
would keep three times the memory.

Where the teacher's probability is 0 (log-probability -inf), forward-type divergences are finite; reverse-type ones
(reverse KL, its weighted sums, adaptive KL, ATKD in reverse) are +inf there by their definition.
"""

from __future__ import annotations

import math

import torch


def cross_entropy(student_NE: torch.Tensor, at_N: torch.Tensor) -> torch.Tensor:
    """-log S(y): sequence-level distillation when y is a pseudo-target (Kim and Rush 2016, equation 5)."""
    return -student_NE.gather(1, at_N[:, None]).squeeze(1)


def soft_cross_entropy(student_NE: torch.Tensor, teacher_NE: torch.Tensor) -> torch.Tensor:
    """-sum T log S: forward KL plus the teacher's entropy, so with its gradient, and not 0 at equality.

    Over events that the teacher drew, with their shares as T, its expectation is the one over the whole vocabulary:
    random-sampling KD (Anshumann et al. 2025, arXiv 2503.16870, section 3.2).
    """
    with torch.no_grad():
        gradient = teacher_NE.exp().neg_()
        return _known(student_NE, (gradient * student_NE).sum(1), gradient)


def entropy(teacher_NE: torch.Tensor) -> torch.Tensor:
    """-sum T log T."""
    return -(teacher_NE.exp() * _finite(teacher_NE)).sum(1)


def forward_kl(student_NE: torch.Tensor, teacher_NE: torch.Tensor) -> torch.Tensor:
    """KL(T || S) = sum T (log T - log S): word-level distillation (Hinton et al. 2015; Kim and Rush 2016)."""
    with torch.no_grad():
        t = teacher_NE.exp()
        values = _finite(teacher_NE).sub_(student_NE).mul_(t).sum(1)
        return _known(student_NE, values, t.neg_())


def reverse_kl(student_NE: torch.Tensor, teacher_NE: torch.Tensor) -> torch.Tensor:
    """KL(S || T) = sum S (log S - log T) (MiniLLM, Gu et al. 2024, equation 2)."""
    with torch.no_grad():
        s, apart = student_NE.exp(), student_NE - teacher_NE
        values = (s * apart).sum(1)
        return _known(student_NE, values, apart.add_(1).mul_(s))


def jsd(student_NE: torch.Tensor, teacher_NE: torch.Tensor, beta: float = 0.5) -> torch.Tensor:
    """beta KL(T || M) + (1 - beta) KL(S || M) with M = beta T + (1 - beta) S (GKD, Agarwal et al. 2024, equation 1).

    beta of 0 is forward and 1 is reverse KL, as peers have it: the limits of the formula, which are 0, train nothing.
    """
    if beta in (0, 1):
        return (reverse_kl if beta else forward_kl)(student_NE, teacher_NE)
    with torch.no_grad():
        s, t = student_NE.exp(), teacher_NE.exp()
        log_m = _log(torch.lerp(s, t, beta))
        forward = _finite(teacher_NE).sub_(log_m).mul_(t).sum(1)
        apart = torch.sub(student_NE, log_m, out=log_m).mul_(s)
        return _known(student_NE, beta * forward + (1 - beta) * apart.sum(1), apart.mul_(1 - beta))


def skewed_forward_kl(student_NE: torch.Tensor, teacher_NE: torch.Tensor, alpha: float = 0.1) -> torch.Tensor:
    """KL(T || alpha T + (1 - alpha) S) (DistiLLM, Ko et al. 2024, section 3.1)."""
    if alpha == 0:
        return forward_kl(student_NE, teacher_NE)
    with torch.no_grad():
        s, t = student_NE.exp(), teacher_NE.exp()
        log_m = _log(torch.lerp(s, t, alpha))
        values = _finite(teacher_NE).sub_(log_m).mul_(t).sum(1)
        return _known(student_NE, values, s.mul_(t).div_(log_m.exp_()).mul_(alpha - 1))


def skewed_reverse_kl(student_NE: torch.Tensor, teacher_NE: torch.Tensor, alpha: float = 0.1) -> torch.Tensor:
    """KL(S || (1 - alpha) T + alpha S) (DistiLLM, Ko et al. 2024, section 3.1)."""
    if alpha == 0:
        return reverse_kl(student_NE, teacher_NE)
    with torch.no_grad():
        s = student_NE.exp()
        log_m = _log(torch.lerp(teacher_NE.exp(), s, alpha))
        apart = student_NE - log_m
        values = (apart * s).sum(1)
        return _known(student_NE, values, apart.add_(1).sub_(alpha * s / log_m.exp_()).mul_(s))


def weighted_kl(student_NE: torch.Tensor, teacher_NE: torch.Tensor, forward: float = 0.9) -> torch.Tensor:
    """forward KL(T || S) + (1 - forward) KL(S || T): what the code of ATKD and of OSD calls JSD, with 0.9."""
    return forward * forward_kl(student_NE, teacher_NE) + (1 - forward) * reverse_kl(student_NE, teacher_NE)


def symmetric_kl(student_NE: torch.Tensor, teacher_NE: torch.Tensor) -> torch.Tensor:
    """Half of KL(T || S) + KL(S || T) (Jeffreys 1946)."""
    return weighted_kl(student_NE, teacher_NE, 0.5)


def total_variation(student_NE: torch.Tensor, teacher_NE: torch.Tensor) -> torch.Tensor:
    """Half of sum |T - S|, between 0 and 1 (f-DISTILL, Wen et al. 2023, section 3)."""
    with torch.no_grad():
        s = student_NE.exp()
        apart = s - teacher_NE.exp()
        return _known(student_NE, 0.5 * apart.abs().sum(1), apart.sign_().mul_(s).mul_(0.5))


def adaptive_kl(
    student_NE: torch.Tensor, teacher_NE: torch.Tensor, head: float = 0.5, crossing: bool = True
) -> torch.Tensor:
    """Forward and reverse KL, weighed by where the two differ (Wu et al. 2025, arXiv 2404.02657, section 5).

    The teacher's most likely events that hold the mass `head` are its head. The forward part weighs by the share of
    |T - S| that lies in the head, the reverse part by the rest; no gradient goes through the weights. `crossing`
    counts the event that crosses `head` to the head; the released code (False) does so only for the first one.
    """
    with torch.no_grad():
        teacher, order = teacher_NE.exp().sort(dim=1, descending=True)
        gaps = (teacher - student_NE.exp().gather(1, order)).abs()
        reached = teacher.cumsum(1)
        inside = reached - teacher < head if crossing else reached <= head
        inside[:, 0] = True
        ahead, total = (gaps * inside).sum(1), gaps.sum(1)
        share = torch.where(total > 0, ahead / total, 0.5)
    return share * forward_kl(student_NE, teacher_NE) + (1 - share) * reverse_kl(student_NE, teacher_NE)


def nucleus_kl(
    student_NE: torch.Tensor, teacher_NE: torch.Tensor, p: float = 0.9, release_scale: bool = False
) -> torch.Tensor:
    """Forward KL from the teacher's nucleus: the smallest set of events of mass p, renormalised (KD4Gen's code).

    release_scale multiplies by p squared, as the released code does, which writes p as a negative temperature.
    """
    values = forward_kl(student_NE, nucleus(teacher_NE, p))
    return values * p**2 if release_scale else values


def nucleus(teacher_NE: torch.Tensor, p: float) -> torch.Tensor:
    """Log-probabilities cut to the smallest set of events whose mass reaches p, and renormalised; -inf outside."""
    probabilities, order = teacher_NE.exp().sort(dim=1, descending=True)
    before = probabilities.cumsum(1) - probabilities
    outside = before >= p
    outside[:, 0] = False
    cut = teacher_NE.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), -math.inf)
    return cut.log_softmax(1)


def target_parts(
    q_NE: torch.Tensor, p_NE: torch.Tensor, at_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(target part_N, diversity part_N, rest_N) of KL(P || Q), where KL = target part + rest x diversity part.

    The target part is the KL between (P_y, 1 - P_y) and (Q_y, 1 - Q_y), the diversity part that between P and Q
    without the target, each renormalised, and rest is 1 - P_y: the teacher's uncertainty when P is the teacher
    (ATKD, Zhong et al. 2024, section 2.2; DKD, Zhao et al. 2022, equation 6). With nothing left but the target the
    diversity part is 0. Everything in log space: no probability underflows.
    """
    at_N1 = at_N[:, None]
    q_rest, p_rest = rest(q_NE, at_N1), rest(p_NE, at_N1)
    target = _kl(torch.cat([p_NE.gather(1, at_N1), p_rest], 1), torch.cat([q_NE.gather(1, at_N1), q_rest], 1))
    others = (_finite(p_NE) - _finite(p_rest)).scatter(1, at_N1, -math.inf)
    diversity = _kl(others, (q_NE - _finite(q_rest)).scatter(1, at_N1, 0.0))
    p_rest = p_rest.squeeze(1)
    return target, torch.where(p_rest > -math.inf, diversity, 0.0), p_rest.exp()


def dkd(
    student_NE: torch.Tensor, teacher_NE: torch.Tensor, at_N: torch.Tensor, alpha: float = 0.2, beta: float = 1.0
) -> torch.Tensor:
    """alpha x target part + beta x diversity part (DKD, Zhao et al. 2022, equation 7); defaults of ATKD's code."""
    target, diversity, _ = target_parts(student_NE, teacher_NE, at_N)
    return alpha * target + beta * diversity


def mse(student_N: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """(S - y)^2 of a predicted number and its label: a loss of a regression."""
    return (student_N - labels_N).square()


def teacher_mse(student_N: torch.Tensor, teacher_N: torch.Tensor) -> torch.Tensor:
    """(S - T)^2 of two predicted numbers: a loss of a regression (matching logits, Hinton et al. 2015, section 2.1)."""
    return (student_N - teacher_N).square()


def rest(logprobs_NE: torch.Tensor, at_N1: torch.Tensor) -> torch.Tensor:
    """log(1 - P(at)) as (N, 1), by summing the others."""
    return logprobs_NE.scatter(1, at_N1, -math.inf).logsumexp(1, keepdim=True)


def _finite(logprobs: torch.Tensor) -> torch.Tensor:
    """-inf as the least finite number, so that a probability of 0 times it is 0."""
    return logprobs.clamp(min=torch.finfo(logprobs.dtype).min)


def _kl(p_NE: torch.Tensor, q_NE: torch.Tensor) -> torch.Tensor:
    """KL(P || Q), with autograd's gradient for both."""
    p_NE = _finite(p_NE)
    return (p_NE.exp() * (p_NE - q_NE)).sum(1)


def _log(mixed_NE: torch.Tensor) -> torch.Tensor:
    """Logarithm, in place, of a mixture: finite where it underflows, and there both of its parts weigh nothing."""
    return mixed_NE.clamp_(min=torch.finfo(mixed_NE.dtype).tiny).log_()


class _Known(torch.autograd.Function):
    @staticmethod
    def forward(ctx, student_NE, values_N, gradient_NE):
        ctx.save_for_backward(gradient_NE)
        return values_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream_N):
        return ctx.saved_tensors[0] * upstream_N[:, None], None, None


def _known(student_NE: torch.Tensor, values_N: torch.Tensor, gradient_NE: torch.Tensor) -> torch.Tensor:
    """The values, with this gradient with respect to the student's log-probabilities."""
    with torch.enable_grad():
        return _Known.apply(student_NE, values_N, gradient_NE) if student_NE.requires_grad else values_N
