"""A node for the host tests only: training layers against the host's own, in the host's own process."""

import copy
import functools
import hashlib
import importlib
import json
import sys

import comfy.model_management
import comfy.quant_ops
import comfy.sd
import folder_paths
import torch


def pack(module):
    """A module of the pack under test, whatever name the host loaded it by."""
    prefix = next(name for name in sys.modules if name.endswith("ComfyUI-DCO.nodes")).removesuffix("nodes")
    return importlib.import_module(prefix + module)


def plain_tensors(network):
    """All memory of the weights, quantised ones by their parts."""
    for name, p in sorted(network.named_parameters()):
        if isinstance(p, comfy.quant_ops.QuantizedTensor):
            yield from p.state_dict(name).items()
        else:
            yield name, p


def weight_hash(network):
    digest = hashlib.sha256()
    for name, tensor in plain_tensors(network):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def saved_bytes(run, network):
    """run(), and the bytes of distinct storages that autograd saved meanwhile, the network's own not counted."""
    own = {t.untyped_storage().data_ptr() for _, t in plain_tensors(network)}
    storages = {}

    def pack_hook(t):
        plain = t._qdata if isinstance(t, comfy.quant_ops.QuantizedTensor) else t
        storages[plain.untyped_storage().data_ptr()] = (plain, plain.untyped_storage().nbytes())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda t: t):
        result = run()
    return result, sum(size for address, (_, size) in storages.items() if address not in own)


def aliased(network):
    """As nodes/host/training/shared_weights.py does it."""
    share = pack("nodes.host.training.shared_weights")._on_same_storage
    frozen = pack("nodes.host.training.frozen_layers")
    memo = {}
    for p in network.parameters():
        if isinstance(p, comfy.quant_ops.QuantizedTensor):
            memo[id(p)] = frozen.shared_quantized(p, share)
        else:
            memo[id(p)] = torch.nn.Parameter(share(p), requires_grad=False)
    return copy.deepcopy(network, memo)


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


class FrozenLayers:
    """Facts about training on a diffusion model file, as JSON."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"file": ("STRING", {}), "dtype": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self, file, dtype):
        options = {"dtype": getattr(torch, dtype)} if dtype else {}
        path = folder_paths.get_full_path("diffusion_models", file)
        model = comfy.sd.load_diffusion_model(path, model_options=options)
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        network = model.model.diffusion_model
        before = weight_hash(network)
        with torch.inference_mode(False), torch.enable_grad():
            facts = self.facts(network, model.model.get_dtype_inference())
        facts["untouched"] = weight_hash(network) == before
        return {"ui": {"text": [json.dumps(facts)]}}

    def facts(self, network, compute):
        frozen, adapters = pack("nodes.host.training.frozen_layers"), pack("dco_core.network.lora_layers")
        checkpointing = pack("dco_core.network.gradient_checkpointing")
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 4, 8, 8, generator=generator).to(compute)
        context = torch.randn(1, 77, 768, generator=generator).to(compute).requires_grad_()
        attention = importlib.import_module("comfy.ldm.modules.attention").attention_pytorch
        override = {"optimized_attention_override": lambda _, *args, **kwargs: attention(*args, **kwargs)}

        def output(net):
            return net(x, torch.tensor([500.0]), context=context, transformer_options=override)

        plain, ours = aliased(network), frozen.use_frozen_layers(aliased(network))
        with torch.no_grad():
            as_sampled = output(plain)
        for m in plain.modules():  # the host's own arithmetic on quantised weights rounds the input too
            if isinstance(getattr(m, "weight", None), comfy.quant_ops.QuantizedTensor):
                m.weight, m.layout_type = torch.nn.Parameter(m.weight.dequantize(), requires_grad=False), None
        layers = [m for m in ours.modules() if isinstance(m, frozen.QuantizedLinear)]
        quantised = [m for m in layers if isinstance(m.weight, comfy.quant_ops.QuantizedTensor)]
        out, size = saved_bytes(functools.partial(output, plain), plain)
        wanted = torch.autograd.grad(out.float().square().sum(), context)[0]
        out_ours, size_ours = saved_bytes(functools.partial(output, ours), ours)
        grad = torch.autograd.grad(out_ours.float().square().sum(), context)[0]
        facts = {
            "compute": str(compute),
            "stored": sorted({str(t.dtype) for _, t in plain_tensors(network)}),
            "mixed": len(layers),
            "quantised": len(quantised),
            "same_output": torch.equal(out, out_ours),
            "from_sampled": relative(out_ours, as_sampled),
            "gradient_error": relative(grad, wanted),
            "saved": size,
            "saved_frozen": size_ours,
            "cast_weights": sum(
                p.numel() * compute.itemsize for p in ours.parameters() if p.dim() > 1 and p.dtype != compute
            )
            + sum(m.weight.numel() * compute.itemsize for m in quantised if m.weight.dtype == compute),
            "shared": sorted(t.data_ptr() for _, t in plain_tensors(network))
            == sorted(t.data_ptr() for _, t in plain_tensors(ours)),
        }
        del plain, out, out_ours

        ours.to(x.device)
        config = adapters.AdapterConfig(rank=2, layers="all linear and convolution")
        trainable = list(adapters.add_adapter(ours, config).values())
        target = torch.randn(x.shape, generator=generator)

        def loss():
            return (output(ours).float() - target).square().mean()

        def step():
            value, size = saved_bytes(loss, ours)
            return value, torch.autograd.grad(value, trainable), size

        losses = []
        optimizer = torch.optim.Adam(trainable, lr=1e-3)
        for _ in range(3):
            value, grads, facts["saved_lora"] = step()
            losses.append(float(value))
            for p, g in zip(trainable, grads, strict=True):
                p.grad = g
            optimizer.step()
        _, grads, _ = step()
        facts["losses"] = losses
        facts["blocks"] = checkpointing.checkpoint_blocks(ours)
        _, again, facts["saved_checkpointed"] = step()
        facts["checkpoint_error"] = max(float((a - b).abs().max()) for a, b in zip(grads, again, strict=True))
        facts["largest_gradient"] = max(float(g.abs().max()) for g in grads)
        facts["lora_dtypes"] = sorted({str(p.dtype) for p in trainable})
        return facts


class TrainsFlux:
    """A tiny Flux of half-precision weights with blocks checkpointed, against finite differences."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, OUTPUT_NODE, CATEGORY = (), "run", True, "test"

    def run(self):
        ops, flux = importlib.import_module("comfy.ops"), importlib.import_module("comfy.ldm.flux.model")
        adapters, checkpointing = pack("dco_core.network.lora_layers"), pack("dco_core.network.gradient_checkpointing")
        was = comfy.model_management.in_training
        comfy.model_management.in_training = True  # the host's fused kernels have no gradient
        try:
            with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                net = flux.Flux(
                    image_model="flux", in_channels=4, out_channels=4, vec_in_dim=8, context_in_dim=8,
                    hidden_size=16, mlp_ratio=2.0, num_heads=2, depth=2, depth_single_blocks=2,
                    axes_dim=[2, 2, 4], theta=10000, patch_size=1, qkv_bias=True, guidance_embed=False,
                    txt_ids_dims=[], operations=ops.manual_cast, dtype=torch.float16, device="cpu",
                )  # fmt: skip
                for p in net.parameters():
                    p.data = (torch.randn(p.shape) * 0.3).half()
                pack("nodes.host.training.frozen_layers").use_frozen_layers(net)
                trainable = adapters.add_adapter(net, adapters.AdapterConfig(rank=2, layers="all linear"))
                for p in trainable.values():
                    torch.nn.init.normal_(p, std=0.2)
                given = [
                    torch.randn(1, 4, 4, 4),
                    torch.tensor([0.5]),
                    torch.randn(1, 5, 8),
                    torch.randn(1, 8),
                ]

                def loss():
                    return net(*given, transformer_options={}).double().square().mean()

                def change(signs, size):
                    for p, s in zip(trainable.values(), signs, strict=True):
                        p.data.add_(s, alpha=size)

                blocks = checkpointing.checkpoint_blocks(net)
                grads = torch.autograd.grad(loss(), list(trainable.values()))
                signs = [g.sign() for g in grads]
                expected = sum(float(g.abs().sum()) for g in grads)
                with torch.no_grad():
                    size = 1e-4
                    change(signs, size)
                    above = loss()
                    change(signs, -2 * size)
                    below = loss()
                found = float(above - below) / (2 * size)
        finally:
            comfy.model_management.in_training = was
        return {"ui": {"text": [json.dumps({"blocks": blocks, "expected": expected, "found": found})]}}


NODE_CLASS_MAPPINGS = {"DCOTestFrozenLayers": FrozenLayers, "DCOTestTrainsFlux": TrainsFlux}
