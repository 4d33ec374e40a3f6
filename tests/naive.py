"""Every token loss in plain loops over Python floats, from its definition; no tricks, so only for moderate logits."""

import math


def softmax(logits, temperature=1.0):
    scaled = [z / temperature for z in logits]
    top = max(scaled)
    raw = [math.exp(z - top) for z in scaled]
    return [r / sum(raw) for r in raw]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def mixture(p, share, q):
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


def without(p, y):
    rest = sum(a for i, a in enumerate(p) if i != y)
    return [a / rest for i, a in enumerate(p) if i != y]


def parts(p, q, y):
    """Target and diversity part of KL(p || q), and 1 - p[y]."""
    return kl([p[y], 1 - p[y]], [q[y], 1 - q[y]]), kl(without(p, y), without(q, y)), 1 - p[y]


def adaptive(s, t, head=0.5, crossing=True):
    order = sorted(range(len(t)), key=lambda i: -t[i])
    mass, inside = 0.0, set()
    for i in order:
        if not inside or (mass < head if crossing else mass + t[i] <= head):
            inside.add(i)
        mass += t[i]
    gaps = [abs(a - b) for a, b in zip(s, t, strict=True)]
    if not sum(gaps):
        return 0.0
    share = sum(gaps[i] for i in inside) / sum(gaps)
    return share * kl(t, s) + (1 - share) * kl(s, t)


def nucleus(t, p):
    order, mass, kept = sorted(range(len(t)), key=lambda i: -t[i]), 0.0, []
    for i in order:
        if kept and mass >= p:
            break
        kept.append(i)
        mass += t[i]
    return [t[i] / mass if i in kept else 0.0 for i in range(len(t))]


def jsd(s, t, beta=0.5):
    if beta == 0:
        return kl(t, s)
    if beta == 1:
        return kl(s, t)
    m = mixture(t, beta, s)
    return beta * kl(t, m) + (1 - beta) * kl(s, m)


VALUES = {  # of one position: student, teacher, target
    "cross_entropy": lambda s, t, y: -math.log(s[y]),
    "soft_cross_entropy": lambda s, t, y: -sum(a * math.log(b) for a, b in zip(t, s, strict=True)),
    "forward_kl": lambda s, t, y: kl(t, s),
    "reverse_kl": lambda s, t, y: kl(s, t),
    "jsd": lambda s, t, y, **o: jsd(s, t, **o),
    "skewed_forward_kl": lambda s, t, y, alpha=0.1: kl(t, mixture(t, alpha, s)),
    "skewed_reverse_kl": lambda s, t, y, alpha=0.1: kl(s, mixture(s, alpha, t)),
    "symmetric_kl": lambda s, t, y: (kl(t, s) + kl(s, t)) / 2,
    "weighted_kl": lambda s, t, y, forward=0.9: forward * kl(t, s) + (1 - forward) * kl(s, t),
    "total_variation": lambda s, t, y: sum(abs(a - b) for a, b in zip(s, t, strict=True)) / 2,
    "adaptive_kl": lambda s, t, y, **o: adaptive(s, t, **o),
    "nucleus_kl": lambda s, t, y, p=0.9, release_scale=False: kl(nucleus(t, p), s) * (p**2 if release_scale else 1),
    "dkd": lambda s, t, y, alpha=0.2, beta=1.0: alpha * parts(t, s, y)[0] + beta * parts(t, s, y)[1],
}


def atkd(students, teachers, targets, easy_weight=0.2, reverse=False):
    """The whole loss over positions: its groups are split at the lower median of the teacher's uncertainty."""
    uncertain = [1 - t[y] for t, y in zip(teachers, targets, strict=True)]
    median = sorted(uncertain)[(len(uncertain) - 1) // 2]
    easy, hard = [], []
    for s, t, y, u in zip(students, teachers, targets, uncertain, strict=True):
        target, diversity, _ = parts(s, t, y) if reverse else parts(t, s, y)
        (easy if u < median else hard).append(diversity if u < median else target + diversity)
    return sum(w * sum(g) / len(g) for w, g in ((easy_weight, easy), (1 - easy_weight, hard)) if g)
