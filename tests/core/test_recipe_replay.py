"""Recorded runs of the whole recipe against an independent implementation in plain torch: learned tokens, min-SNR,
accumulation, prior preservation, what theta is held to, and the baselines, without peft and without our losses,
schedules or trainer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dco_core.network.denoiser import NetworkDenoiser
from dco_core.network.lora_layers import AdapterConfig
from dco_core.schedules import Schedule
from dco_core.training.config import TrainingConfig
from dco_core.training.draws import random_draws
from dco_core.training.examples import Example
from dco_core.training.learned_tokens import LearnedTokens
from dco_core.training.trainer import train

RANK, STEPS = 3, 10
BASE_IDS, TOKEN = (1, 4, 2, 7), 2  # a caption of four words; the third is the subject's


class Network(nn.Module):
    """x [B, 6, 2, 2], t [B], context [B, n, 5] -> [B, 6, 2, 2]."""

    def __init__(self):
        super().__init__()
        self.time, self.ff = nn.Linear(1, 6), nn.Linear(6, 6)
        self.attn2 = nn.ModuleDict(
            {"to_q": nn.Linear(6, 6), "to_k": nn.Linear(5, 6), "to_v": nn.Linear(5, 6)}
        )

    def forward(self, x, t, context):
        h = x.flatten(2).transpose(1, 2) + self.time(t.float()[:, None, None] / 1000)
        q, k, v = self.attn2["to_q"](h), self.attn2["to_k"](context), self.attn2["to_v"](context)
        h = h + torch.softmax(q @ k.transpose(1, 2), -1) @ v
        return (h + torch.tanh(self.ff(h))).transpose(1, 2).reshape(x.shape)


class Denoiser(NetworkDenoiser):
    """Prompts of different length go one by one."""

    def forward(self, x_t, t, conditioning):
        return torch.cat(
            [self.network(x_t[i : i + 1], t[i : i + 1], c[None]) for i, c in enumerate(conditioning)]
        )


class Text(nn.Module):
    """A text encoder: an embedding table and one mixing layer."""

    def __init__(self):
        super().__init__()
        self.table, self.mix = nn.Embedding(9, 5), nn.Linear(5, 5)

    def forward(self, embeddings):
        return torch.tanh(self.mix(embeddings + embeddings.mean(0)))


@pytest.fixture
def world():
    torch.manual_seed(0)
    network, text = Network().requires_grad_(False), Text().requires_grad_(False)
    latents = [torch.randn(6, 2, 2) for _ in range(3)]
    stds = [torch.rand(6, 2, 2) * 0.3 for _ in range(3)]
    rejected = [torch.randn(6, 2, 2) for _ in range(3)]
    masks = [torch.tensor([[1.0, 0.0], [0.5, 1.0]]), None, torch.tensor([[0.0, 1.0], [1.0, 0.25]])]
    return network, text, latents, stds, rejected, masks


def recorded(examples, schedule, config):
    stream = random_draws(examples, len(schedule), config)
    return [[next(stream) for _ in range(config.gradient_accumulation_steps)] for _ in range(STEPS)]


PRESERVED_IDS = ([0], [5, 6, 8], [4, 2])  # prompts of any length, the first as good as empty


def replay(world, draws, config, start, start_rows, n_prior, masked, class_ids):
    """-> losses, and per step ({module: (down, up)}, rows)."""
    network, text, latents, stds, rejected, masks = world
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    signal = torch.cumprod(1 - betas, 0)
    lora = {
        n: (a.clone().requires_grad_(), torch.zeros(6, RANK, requires_grad=True)) for n, a in start.items()
    }
    rows = None if start_rows is None else start_rows.clone().requires_grad_()
    groups = [([p for pair in lora.values() for p in pair], config.learning_rate)]
    if rows is not None:
        groups.append(([rows], config.token_learning_rate))
    parameters = [p for g, _ in groups for p in g]
    moments = {id(p): (torch.zeros_like(p), torch.zeros_like(p)) for p in parameters}

    def context(ids, with_rows):
        embeddings = text.table(torch.tensor(ids))
        if with_rows and rows is not None:
            embeddings = torch.cat([embeddings[:TOKEN], rows, embeddings[TOKEN + 1 :]])
        return text(embeddings)

    def predict(x, t, c, with_lora):
        net = copy.deepcopy(network)
        if with_lora:
            for name, (a, b) in lora.items():
                layer = net.get_submodule(name)
                weight = layer.weight.detach() + b @ a
                del layer.weight
                layer.weight = weight
        return net(x[None], torch.tensor([t]), c[None])[0]

    def one(d, with_lora, image=None):
        ids = [0, 3] if d.dropped else list(BASE_IDS)
        x0 = image if image is not None else latents[d.image] + stds[d.image] * d.posterior
        s = signal[d.t].float()
        x = s.sqrt() * x0 + (1 - s).sqrt() * d.noise
        prediction = predict(x, d.t, context(ids, with_lora and not d.dropped), with_lora)
        squared = (prediction - d.noise) ** 2
        mask = masks[d.image] if masked and image is None else None
        if mask is None:
            return squared.mean()
        return (squared * mask).sum() / (mask.sum() * len(squared))

    def weight(d):
        if config.weighting != "min-snr":
            return 1.0
        snr = float(signal[d.t] / (1 - signal[d.t]))
        return min(snr, config.snr_gamma) / snr

    def noised(d):
        x0, s = latents[d.image] + stds[d.image] * d.posterior, signal[d.t].float()
        return s.sqrt() * x0 + (1 - s).sqrt() * d.noise

    def held(d, ids, weights):
        """Squared distance of theta, on its caption or on a prompt of both, and phi, weighed cell by cell."""
        own = list(BASE_IDS) if ids is None else ids
        dropped = [0, 3] if d.dropped and ids is None else own
        rows_too = ids is None and not d.dropped
        theta = predict(noised(d), d.t, context(dropped, rows_too), True)
        with torch.no_grad():
            phi = predict(noised(d), d.t, context(dropped, False), False)
        return ((theta - phi) ** 2 * weights).sum() / (weights.sum() * len(theta))

    def loss_of(batch):
        main = [d for d in batch if d.image < 3 - n_prior]
        loss = objective_of(batch)
        for d in main:
            if config.mask_prior and masks[d.image] is not None:
                loss = loss + config.mask_prior * held(d, None, 1 - masks[d.image]) / len(main)
            if config.preservation_prompts and d.preserved >= 0:
                drift = held(d, list(PRESERVED_IDS[d.preserved]), torch.ones(2, 2))
                loss = loss + config.preservation_weight * drift / len(main)
        return loss

    def objective_of(batch):
        main = [d for d in batch if d.image < 3 - n_prior]
        class_images = [d for d in batch if d.image >= 3 - n_prior]
        theta = [one(d, True) for d in main]
        w = [weight(d) for d in main]
        plain = sum(a * b for a, b in zip(w, theta, strict=True)) / len(main)
        def prior_loss():
            """Never weighted by min-SNR, as in the authors' code."""
            return sum(one(d, True) for d in class_images) / len(class_images)

        if config.objective in ("dco", "dco-prior"):
            with torch.no_grad():
                phi = [one(d, False) for d in main]
            logits = torch.stack(
                [-1000 * config.beta * k * (a - b) for k, a, b in zip(w, theta, phi, strict=True)]
            )
            gated = torch.log1p(torch.exp(-logits)).mean()
            if config.reduction == "batch-mean":
                gated = torch.log1p(torch.exp(-logits.mean()))
            return gated + config.prior_weight * prior_loss() if class_images else gated
        if config.objective == "dreambooth-prior":
            return plain + config.prior_weight * prior_loss()
        if config.objective == "mapo":
            bad, k = [one(d, True, rejected[d.image]) for d in main], config.mapo_snr
            odds = [
                k * a / (torch.exp(k * a) - 1) - k * b / (torch.exp(k * b) - 1)
                for a, b in zip(theta, bad, strict=True)
            ]
            ratio = -torch.log1p(torch.exp(-1000 * torch.stack(odds).double())).float()
            return plain - config.mapo_beta * ratio.mean()
        if config.objective == "output-preservation":
            drift = []
            for d in main:
                x0 = latents[d.image] + stds[d.image] * d.posterior
                s = signal[d.t].float()
                x = s.sqrt() * x0 + (1 - s).sqrt() * d.noise
                c = context(class_ids, False)
                drift.append(((predict(x, d.t, c, True) - predict(x, d.t, c, False).detach()) ** 2).mean())
            return plain + config.preservation_weight * sum(drift) / len(drift)
        return plain

    norms = None if rows is None else rows.detach().norm(dim=1, keepdim=True)
    losses, history = [], []
    steps = dict.fromkeys(moments, 0)
    for micro in draws:
        grads: list = [None] * len(parameters)
        total = 0.0
        for batch in micro:
            loss = loss_of(batch) / len(micro)
            for i, new in enumerate(torch.autograd.grad(loss, parameters, allow_unused=True)):
                if new is not None:
                    grads[i] = new if grads[i] is None else grads[i] + new
            total += loss.item()
        norm = torch.sqrt(sum((g**2).sum() for g in grads if g is not None)).item()
        clip = min(1.0, config.max_grad_norm / (norm + 1e-6))
        flat = iter(grads)
        with torch.no_grad():
            for group, rate in groups:
                for p in group:
                    g, (m, v) = next(flat), moments[id(p)]
                    if g is None:  # as torch's optimisers do: no gradient, no step
                        continue
                    g, k = g * clip, steps[id(p)] + 1
                    steps[id(p)] = k
                    p.mul_(1 - rate * config.weight_decay)
                    m.mul_(0.9).add_(0.1 * g)
                    v.mul_(0.999).add_(0.001 * g**2)
                    p.sub_(rate * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8))
            if rows is not None:
                rows.mul_(norms / rows.norm(dim=1, keepdim=True))
        losses.append(total)
        history.append(
            (
                {n: (a.detach().clone(), b.detach().clone()) for n, (a, b) in lora.items()},
                None if rows is None else rows.detach().clone(),
            )
        )
    return losses, history


SUBJECT = {"beta": 0.05, "batch_size": 1, "token_learning_rate": 5e-3}
CASES = {
    "subject without tokens": (SUBJECT, False, False),
    "subject with tokens": (SUBJECT, True, False),
    "subject with tokens, authors' reduction": (SUBJECT | {"batch_size": 2, "reduction": "batch-mean"}, True, False),
    "style with offset noise and min-SNR": (
        {"beta": 0.05, "offset_noise": 0.1, "weighting": "min-snr", "batch_size": 2}, False, False
    ),
    "batch of 2, a gate for each": (SUBJECT | {"batch_size": 2}, False, False),
    "batch of 2, one gate": (SUBJECT | {"batch_size": 2, "reduction": "batch-mean"}, False, False),
    "gradient accumulation with tokens": (SUBJECT | {"batch_size": 2, "gradient_accumulation_steps": 3}, True, False),
    "plain loss with min-SNR": ({"objective": "dreambooth", "weighting": "min-snr", "batch_size": 2}, False, False),
    "plain loss with tokens": ({"objective": "dreambooth", "token_learning_rate": 5e-3}, True, False),
    "prior preservation": ({"objective": "dreambooth-prior", "prior_weight": 0.7, "batch_size": 2}, True, False),
    "prior preservation with min-SNR": (
        {"objective": "dreambooth-prior", "weighting": "min-snr", "prior_weight": 0.7, "batch_size": 2}, False, False
    ),
    "DCO with prior": (
        SUBJECT | {"objective": "dco-prior", "prior_weight": 30.0, "batch_size": 2}, True, False
    ),
    "DCO with prior, min-SNR and one gate": (
        {"objective": "dco-prior", "beta": 0.05, "weighting": "min-snr", "prior_weight": 30.0, "batch_size": 2,
         "reduction": "batch-mean", "gradient_accumulation_steps": 2}, False, False
    ),
    "MaPO": ({"objective": "mapo", "mapo_beta": 0.2, "batch_size": 2}, False, False),
    "output preservation": (
        {"objective": "output-preservation", "preservation_weight": 2.0, "batch_size": 2}, True, False
    ),
    "other clip and decay": (SUBJECT | {"max_grad_norm": 0.2, "weight_decay": 5.0}, True, False),
    "plain loss with another gamma": (
        {"objective": "dreambooth", "weighting": "min-snr", "snr_gamma": 1.0, "batch_size": 2}, False, False
    ),
    "MaPO with another snr": ({"objective": "mapo", "mapo_snr": 1.5, "batch_size": 2}, False, False),
    "masks": (SUBJECT | {"batch_size": 2}, False, True),
    "mask prior": (SUBJECT | {"batch_size": 2, "mask_prior": 3.0}, False, True),
    "mask prior with tokens, one gate, caption dropout": (
        SUBJECT | {"batch_size": 2, "mask_prior": 3.0, "reduction": "batch-mean", "caption_dropout": 0.5}, True, True
    ),
    "mask prior beside the plain loss": (
        {"objective": "dreambooth", "mask_prior": 0.7, "weighting": "min-snr", "batch_size": 2}, False, True
    ),
    "mask prior beside the plain loss with tokens": (
        {"objective": "dreambooth", "mask_prior": 0.7, "token_learning_rate": 5e-3}, True, True
    ),
    "mask prior and class images": (
        SUBJECT | {"objective": "dco-prior", "mask_prior": 3.0, "prior_weight": 30.0, "batch_size": 2}, True, True
    ),
    "preservation": (
        SUBJECT | {"batch_size": 2, "preservation_prompts": "blank; mine; class", "preservation_weight": 4.0},
        True, False
    ),
    "preservation in a share of the batches, accumulated": (
        SUBJECT | {"batch_size": 2, "preservation_prompts": "blank; mine; class", "preservation_weight": 4.0,
                   "preservation_share": 0.4, "gradient_accumulation_steps": 2}, False, False
    ),
    "preservation beside the plain loss": (
        {"objective": "dreambooth", "preservation_prompts": "blank; mine; class", "caption_dropout": 0.5}, False, False
    ),
    "preservation beside class images": (
        {"objective": "dreambooth-prior", "preservation_prompts": "blank; mine; class", "preservation_share": 0.7,
         "batch_size": 2}, True, False
    ),
    "everything that holds": (
        SUBJECT | {"batch_size": 2, "mask_prior": 3.0, "preservation_prompts": "blank; mine; class"}, True, True
    ),
    "caption dropout with tokens": (SUBJECT | {"batch_size": 2, "caption_dropout": 0.5}, True, False),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_losses_first_update_final_weights_and_token_rows_match(world, case):
    network, text, latents, stds, rejected, masks = world
    changes, with_tokens, masked = CASES[case]
    config = TrainingConfig(**({"steps": STEPS, "learning_rate": 1e-3, "seed": 7} | changes))
    n_prior = 1 if config.objective in ("dreambooth-prior", "dco-prior") else 0
    class_ids = [4, 2]

    tokens = None
    if with_tokens:
        rows = text.table.weight[BASE_IDS[TOKEN]][None].repeat(2, 1)  # two vectors for one word
        tokens = LearnedTokens({"dog": {"text": rows}}, {"dog": "dog"})
    base_text = text(text.table(torch.tensor(BASE_IDS)))

    def own():
        e = text.table(torch.tensor(BASE_IDS))
        return text(torch.cat([e[:TOKEN], tokens.rows()["dog"]["text"], e[TOKEN + 1 :]]))

    examples = [
        Example(
            latents[i],
            own if with_tokens else base_text,
            base_conditioning=base_text,
            std=stds[i],
            class_conditioning=text(text.table(torch.tensor(class_ids))),
            empty_conditioning=text(text.table(torch.tensor([0, 3]))),
            mask=masks[i] if masked else None,
            prior=i >= 3 - n_prior,
            rejected=[rejected[i]],
            preserved=[text(text.table(torch.tensor(ids))) for ids in PRESERVED_IDS],
        )
        for i in range(3)
    ]
    schedule = Schedule.stable_diffusion()
    draws = recorded(examples, schedule, config)
    denoiser = Denoiser(copy.deepcopy(network), schedule, AdapterConfig(rank=RANK, seed=3))
    start = {n: layer.down for n, layer in denoiser.lora().items()}
    start_rows = tokens.tensors()["dog"]["text"] if tokens else None
    losses, seen = [], []

    def on_step(report):
        losses.append(report.loss)
        seen.append((denoiser.lora(), tokens.tensors()["dog"]["text"] if tokens else None))

    flat = iter([batch for step in draws for batch in step])
    train(denoiser, examples, config, on_step, draws=flat, tokens=tokens)
    expected, history = replay(world, draws, config, start, start_rows, n_prior, masked, class_ids)
    for k in (0, -1):
        for name, (a, b) in history[k][0].items():
            torch.testing.assert_close(seen[k][0][name].down, a, rtol=1e-4, atol=2e-6)
            torch.testing.assert_close(seen[k][0][name].up, b, rtol=1e-4, atol=2e-6)
        if tokens:
            torch.testing.assert_close(seen[k][1], history[k][1], rtol=1e-4, atol=2e-6)
            assert k == 0 or not torch.equal(seen[k][1], start_rows)
            torch.testing.assert_close(seen[k][1].norm(dim=1), start_rows.norm(dim=1))
    assert losses == pytest.approx(expected, rel=1e-4, abs=1e-6)
