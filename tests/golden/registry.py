"""REGISTRY: for every golden loss, what the published code computes, out of raykd.losses.

An adapter `fn(inputs, params) -> loss` renames, masks and reduces, and holds the peers' fill rules and mask quirks;
the arithmetic is raykd's.
"""

from __future__ import annotations

import functools

import torch
from named_losses import token_loss

from raykd.losses import divergences, features
from raykd.losses.logits import HeadLogits
from raykd.losses.loss import make_loss
from raykd.losses.teachers import TopK
from raykd.losses.tokens import IGNORE, TokenBatch, sequence_weights, token_losses


def _mean(loss, inputs, keep, target=None, over=None, teacher=None, temperatures=(1.0, 1.0)):
    """Of one loss over the kept positions (B, T): divided by their number, or by `over`."""
    student, own = inputs["student_logits"] / temperatures[0], inputs.get("teacher_logits")
    labels = torch.where(keep, torch.zeros_like(keep, dtype=torch.long) if target is None else target, IGNORE)
    if teacher is None and own is not None:
        teacher = (own / temperatures[1]).flatten(0, -2)
    over = None if over is None else dict.fromkeys(loss.factors, over)
    batch = TokenBatch(labels.flatten(), teacher, denominators=over)
    return token_losses([loss], student.flatten(0, -2), batch).total


# ---- ATKD and OSD: labels shifted inside, pads are targets of nobody, no temperature squared


def _atkd(loss, inputs, params):
    ids, pad, shifted = inputs.get("input_ids"), params.get("pad_token_id"), params["shift"].startswith("inside")
    if "padding_mask" in inputs:
        left_out = inputs["padding_mask"]
    elif params.get("sample_source") == "student":  # the last prompt token stays in: the release masks before it shifts
        left_out = ids == pad
        left_out[:, : params["prompt_len"] - 1] = True
    else:
        left_out = (inputs["labels"] == IGNORE) | (inputs["labels"] == pad)
    if shifted:
        names = ("student_logits", "teacher_logits")
        inputs = {**inputs, **{n: inputs[n][:, :-1] for n in names}}
        left_out, ids = left_out[:, 1:], None if ids is None else ids[:, 1:]
    temperature = params.get("temperature", 1.0)
    temperatures = [params.get(f"{who}_temperature", temperature) for who in ("student", "teacher")]
    if getattr(
        loss.loss, "reverse", False
    ):  # the release exchanges the logits and leaves the temperatures where they are
        temperatures.reverse()
    keep = left_out if loss.name == "total_variation" else ~left_out  # the release averages what it should leave out
    target = None if loss.name not in ("dkd", "atkd") else ids
    return _mean(loss, inputs, keep, target, temperatures=temperatures) / params.get("gradient_accumulation_steps", 1)


def _atkd_dkd(inputs, params):
    return _atkd(token_loss("dkd", **{n: params[n] for n in ("alpha", "beta")}), inputs, params)


def _atkd_atkd(inputs, params):
    reverse = params["setting"] == "reverse"
    return _atkd(token_loss("atkd", easy_weight=params["alpha"], reverse=reverse), inputs, params)


# ---- one-to-one sub-teachers


def _tokens(inputs):
    kept = inputs["attention_mask"].bool()
    return inputs["student_hidden"][kept], inputs["teacher_hidden"][kept]


def _mean_of(term):
    return term.sum / term.denominator.clamp(min=1)


def _correlation(inputs, params):
    options = {"off_diagonal": params.get("lambda_offdiag", 0.005), "normalisation": "release", "epsilon": 0.0}
    return params["alpha_corr"] * _mean_of(features.cross_correlation(*_tokens(inputs), **options))


def _mse(inputs, params):
    return params["alpha_mse"] * _mean_of(features.hidden_mse(*_tokens(inputs)))


def _cosine(inputs, params):
    return params["alpha_cos"] * _mean_of(features.hidden_cosine(*_tokens(inputs)))


def _correlation_masked(inputs, params):
    student, teacher = _tokens(inputs)
    keep = inputs["feature_keep"].bool()
    options = {"off_diagonal": params["lambda_offdiag"], "normalisation": "release", "epsilon": 0.0}
    term = features.cross_correlation(student, teacher, mask=features.FeatureMask(keep, "add"), **options)
    mse = features.hidden_mse(student[:, keep], teacher[:, keep])
    return params["alpha_corr"] * _mean_of(term) + params["alpha_mse"] * _mean_of(mse)


def _classes(inputs, params):
    loss = token_loss("forward_kl", weight=params["alpha_ce"], temperature=params["temperature"])
    return _mean(loss, inputs, torch.ones(len(inputs["student_logits"]), dtype=torch.bool))


def _sub_teacher(inputs, params):
    terms = {"alpha_ce": _classes, "alpha_corr": _correlation, "alpha_mse": _mse, "alpha_cos": _cosine}
    total = params["alpha_task"] * inputs["task_loss"]
    return total + sum(term(inputs, params) for name, term in terms.items() if params.get(name))


# ---- KD4Gen: means over sequences of means over tokens, the temperature squared


def _kd4gen_logits(inputs, params):
    keep = inputs["labels_mask"].bool()
    labels = torch.where(keep, 0, IGNORE)
    temperature = params["temperature"]
    if temperature > 0:
        loss = token_loss("forward_kl", temperature=temperature)
    else:
        loss = make_loss(divergences.nucleus_kl, p=-temperature, release_scale=True)
    student, teacher = (inputs[f"{who}_logits"].flatten(0, 1) for who in ("student", "teacher"))
    over = {loss.name: len(labels)}  # a sequence without targets counts as well
    weights = sequence_weights(labels).flatten()
    return token_losses([loss], student, TokenBatch(labels.flatten(), teacher, weights, denominators=over)).total


def _relations(student, teacher, mask, causal, kl):
    term = features.relations(student, teacher, mask, causal=causal, form="kl" if kl else "rmse")
    return term.sum / (len(mask) * teacher.shape[1])  # a sequence without positions counts as well


def _hidden_relations(inputs, params):
    student, teacher = (inputs[f"{who}_hidden"][:, None] for who in ("student", "teacher"))
    return _relations(student, teacher, inputs["attention_mask"], params["causal_mask"], params["kl_loss"])


def _attention_relations(inputs, params):
    states = inputs["student_states"], inputs["teacher_states"]
    return _relations(*states, inputs["attention_mask"], params["causal_mask"], params["kl_loss"])


def _loss_step(inputs, params):
    labels, student, teacher = inputs["labels"], inputs["student_logits"], inputs["teacher_logits"]
    labels = labels.masked_fill(labels == params["pad_token_id"], IGNORE)
    width = student.shape[-1]
    teacher = torch.nn.functional.pad(teacher, (0, max(0, width - teacher.shape[-1])), value=-10000.0)[..., :width]
    scales = params.get("loss_scales") or {}
    here = {"student_logits": student, "teacher_logits": teacher, "labels_mask": labels != IGNORE}
    total = params.get("logits_weight", 0.0) * scales.get("logits_loss", 1.0) * _kd4gen_logits(here, params)
    if params.get("forward_weight"):
        task = _mean(token_loss("cross_entropy"), {"student_logits": student}, labels != IGNORE, labels)
        total = total + params["forward_weight"] * task
    if weight := params.get("attention_relation_weight"):
        for name in ("dec_sa_k", "dec_sa_v", "dec_sa_q", "dec_ca_k", "dec_ca_v", "dec_ca_q"):
            of_labels = name.startswith("dec_sa") or name == "dec_ca_q"
            total = total + weight / 9 * _nine(inputs, params, scales, name, labels != IGNORE, of_labels)
        for name in ("enc_sa_k", "enc_sa_v", "enc_sa_q"):
            total = total + weight / 9 * _nine(inputs, params, scales, name, labels != IGNORE, False)
    return total


def _nine(inputs, params, scales, name, label_mask, of_labels):
    mask = label_mask if of_labels else inputs["attention_mask"]
    states = inputs[f"student_{name}"], inputs[f"teacher_{name}"]
    found = _relations(*states, mask, name.startswith("dec_sa"), params["kl_loss"])
    return scales.get(f"{name}_loss", 1.0) * found


# ---- TRL, Liger, transformers: token means, no temperature squared


def _jsd(inputs, params, kind="jsd"):
    student, labels = inputs["student_logits"], inputs.get("labels", inputs.get("mask"))
    keep = torch.ones(student.shape[:2], dtype=torch.bool)
    if labels is not None:
        keep = labels.bool() if "mask" in inputs else labels != IGNORE
    over = {"sum": 1, "mean": int(keep.sum()) * student.shape[-1]}.get(params.get("reduction", "batchmean"))
    over = params.get("num_items_in_batch") or over or (len(student) if labels is None else None)
    options = {"beta": params["beta"]} if kind == "jsd" else {}
    loss = token_loss(kind, temperature=params.get("temperature", 1.0), squared=False, **options)
    return _mean(loss, inputs, keep, over=over)


def _topk_jsd(inputs, params):
    beta, k = params["beta"], params["top_k"]
    both = [inputs[f"{who}_logits"] / params.get("temperature", 1.0) for who in ("student", "teacher")]
    labels = inputs.get("labels", torch.zeros(both[0].shape[:2]))
    student, teacher = (logits.log_softmax(-1)[labels != IGNORE] for logits in both)
    chosen = {0: [teacher], 1: [student]}.get(beta, [teacher, student])
    inside = torch.zeros_like(teacher, dtype=torch.bool)
    for logprobs in chosen:
        inside = inside.scatter(1, logprobs.topk(k, 1).indices, True)
    events = []
    for logprobs in (student, teacher):
        held = logprobs.masked_fill(~inside, -1e30)
        rest = logprobs.masked_fill(inside, -1e30).logsumexp(1, keepdim=True)
        events.append(torch.cat([held, rest], 1) if params["add_tail"] else held.log_softmax(1))
    return divergences.jsd(*events, beta=beta).sum() / max(1, len(student))


def _entropy(student_NE, teacher_NE, at_N):
    return divergences.entropy(student_NE)


def _chunked(inputs, params):
    sides = {}
    for who in ("student", "teacher"):
        hidden = inputs[f"{who}_hidden"].flatten(0, -2)
        scale, cap = params.get(f"{who}_logit_scale", 1.0), params.get(f"{who}_final_logit_softcapping")
        sides[who] = HeadLogits((hidden,), (inputs[f"{who}_head"],), inputs.get(f"{who}_bias"), scale, cap)
    labels = torch.where(inputs["completion_mask"].bool(), 0, IGNORE).flatten()
    temperature, over = params.get("temperature", 1.0), params.get("num_items_in_batch")
    divergence = token_loss("jsd", temperature=temperature, beta=params["beta"])
    extra = make_loss(_entropy, weight=0.0, temperature=temperature)
    over = None if over is None else {"jsd": over, "_entropy": 1}
    batch = TokenBatch(labels, sides["teacher"], denominators=over)
    found = token_losses([divergence, extra], sides["student"], batch, chunk_rows=3)
    return found.total, {"student_entropy_sum": found.terms["_entropy"].sum}


def _liger(inputs, params, cosine=False):
    labels, columns = inputs["labels"].flatten(), len(inputs["student_weight"])
    extra = len(inputs["teacher_weight"]) - columns  # the release gives missing tokens logits of 0, in the soft part
    hard = _head(inputs, "student")
    soft = hard._replace(
        weights=(torch.nn.functional.pad(hard.weights[0], (0, 0, 0, extra)),),
        bias=None if hard.bias is None else torch.nn.functional.pad(hard.bias, (0, extra)),
    )
    teacher, rows = _head(inputs, "teacher"), params.get("chunk_size")
    ce = token_loss("cross_entropy", weight=params["weight_hard_loss"])
    total = token_losses([ce], hard, TokenBatch(labels), chunk_rows=rows).total
    if cosine:
        kept = labels != IGNORE
        logits = (side.product(slice(None))[kept] for side in (soft, teacher))
        return total + params["weight_soft_loss"] * params["beta"] * _mean_of(features.hidden_cosine(*logits))
    options, weight = {"beta": params["beta"]}, params["weight_soft_loss"]
    jsd = token_loss("jsd", weight=weight, temperature=params["temperature"], **options)
    return total + token_losses([jsd], soft, TokenBatch(labels, teacher), chunk_rows=rows).total


def _head(inputs, who):
    features_NH = inputs[f"{who}_input"].flatten(0, -2)
    return HeadLogits((features_NH,), (inputs[f"{who}_weight"],), inputs.get(f"{who}_bias"))


def _causal_ce(inputs, params):
    labels = inputs["labels"][:, 1:]
    here = {"student_logits": inputs["student_logits"][:, :-1]}
    return _mean(token_loss("cross_entropy"), here, labels != IGNORE, labels, params["num_items_in_batch"])


# ---- MiniLLM, DistiLLM: token means; forward types without the teacher's entropy. DistillKit: the temperature squared


def _token_mean(kind, inputs, params, minus_entropy=False, **options):
    keep = inputs["mask"].bool() if "mask" in inputs else inputs["labels"] != IGNORE
    found = _mean(token_loss(kind, **options), inputs, keep)
    if minus_entropy:
        found = found + divergences.entropy(inputs["teacher_logits"][keep].log_softmax(-1)).mean()
    return found


def _minillm_kd(inputs, params):
    keep = inputs["labels"] != IGNORE
    logits = inputs["student_logits"][keep]
    student = logits.log_softmax(-1).masked_fill(logits.isinf(), 0.0)  # left out of the sum
    return divergences.soft_cross_entropy(student, inputs["teacher_logits"][keep].log_softmax(-1)).mean()


def _distillm(kind, inputs, params):
    lam = params.get("lam")
    if kind == "jsd":
        return _token_mean(kind, inputs, params, beta=1 - lam)
    if kind == "weighted_kl":  # its forward part has no entropy either
        soft, reverse = (_token_mean(k, inputs, params) for k in ("soft_cross_entropy", "reverse_kl"))
        return (1 - lam) * soft + lam * reverse
    return _token_mean(kind, inputs, params, kind == "skewed_forward_kl", alpha=lam)


def _distillkit(kind, inputs, params):
    keep, temperature = inputs["mask"].bool(), params["temperature"]
    if params["top_k"] is None:
        return _mean(token_loss(kind, temperature=temperature, squared=True), inputs, keep)
    ids, logprobs = inputs["teacher_ids"].flatten(0, 1), inputs["teacher_logprobs"].flatten(0, 1)
    here = {"student_logits": inputs["student_logits"]}
    tail = "renormalise"
    if params["missing"] == "ZERO":
        logprobs = logprobs / temperature
    else:  # the release tempers the tail's mass as if it were one token's
        tail, rest = "bucket", torch.log1p(-logprobs.exp().sum(-1, keepdim=True).clamp(max=1))
        logprobs = (torch.cat([logprobs, rest], 1) / temperature).log_softmax(1)[:, :-1]
    known = TopK(ids, logprobs, tail)
    loss = token_loss(kind, weight=temperature**2)
    return _mean(loss, here, keep, teacher=known, temperatures=(temperature, 1.0))


def _layers(loss, inputs, params):
    kept = inputs["mask"].bool()
    pairs = [
        (inputs[f"student_hidden_{i}"][kept], inputs[f"teacher_hidden_{i}"][kept]) for i in range(params["layers"])
    ]
    return sum(_mean_of(loss(*pair)) for pair in pairs) / len(pairs)


_P = functools.partial
REGISTRY = {
    "atkd_forward_kl": _P(_atkd, token_loss("forward_kl")),
    "atkd_reverse_kl": _P(_atkd, token_loss("reverse_kl")),
    "atkd_jsd": _P(_atkd, token_loss("weighted_kl")),
    "atkd_tvd": _P(_atkd, token_loss("total_variation")),
    "atkd_dkd": _atkd_dkd,
    "atkd_atkd": _atkd_atkd,
    "osd_soft_cross_entropy": _P(_atkd, token_loss("soft_cross_entropy")),
    "subteacher_cross_correlation": _correlation,
    "subteacher_cross_correlation_masked": _correlation_masked,
    "subteacher_mse": _mse,
    "subteacher_cosine": _cosine,
    "subteacher_logits_kd": _classes,
    "subteacher_total": _sub_teacher,
    "kd4gen_logits_kd": _kd4gen_logits,
    "kd4gen_logits_kd_nucleus": _kd4gen_logits,
    "kd4gen_hidden_relations": _hidden_relations,
    "kd4gen_attention_relations": _attention_relations,
    "kd4gen_loss_step": _loss_step,
    "trl_gkd_jsd": _jsd,
    "trl_topk_jsd": _topk_jsd,
    "trl_chunked_divergence": _chunked,
    "trl_minillm_single_step": _P(_jsd, kind="reverse_kl"),
    "liger_jsd": _liger,
    "liger_cosine": _P(_liger, cosine=True),
    "hf_causal_ce": _causal_ce,
    "minillm_single_step_rkl": _P(_token_mean, "reverse_kl"),
    "minillm_kd": _minillm_kd,
    "distillm_forward_kl": _P(_token_mean, "soft_cross_entropy"),
    "distillm_reverse_kl": _P(_token_mean, "reverse_kl"),
    "distillm_symmetric_kl": _P(_distillm, "weighted_kl"),
    "distillm_js_distance": _P(_distillm, "jsd"),
    "distillm_tv_distance": _P(_token_mean, "total_variation"),
    "distillm_skewed_forward_kl": _P(_distillm, "skewed_forward_kl"),
    "distillm_skewed_reverse_kl": _P(_distillm, "skewed_reverse_kl"),
    "distillkit_kl": _P(_distillkit, "forward_kl"),
    "distillkit_jsd": _P(_distillkit, "jsd"),
    "distillkit_tvd": _P(_distillkit, "total_variation"),
    "distillkit_hidden_mse": _P(_layers, features.hidden_mse),
    "distillkit_hidden_cosine": _P(_layers, features.hidden_cosine),
}
