"""Vision models of transformers, small and random, in folders as the library saves them."""

from __future__ import annotations

import io
from pathlib import Path

import torch

SIDE = 28  # pixels
WORDS = "a photo of the dog cat toy star heart on beach at night in red blue flat neon style"


def write_dinov2(folder: Path) -> Path:
    """DINOv2 with 2 layers for images of 28 x 28 pixels."""
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=7
    )
    model = Dinov2Model(config)
    _spread(model)
    model.save_pretrained(folder)
    BitImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, resample=3,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)  # fmt: skip
    return folder


def write_siglip(folder: Path) -> Path:
    """SigLIP with 2 layers each, a tokenizer of its own, and a scale and a bias as training leaves them."""
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel, SiglipProcessor

    torch.manual_seed(1)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    tokenizer = _tokenizer(folder)
    config = SiglipConfig(
        text_config=tower | {"vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config=tower | {"image_size": SIDE, "patch_size": 7},
    )
    model = SiglipModel(config)
    _spread(model)
    model.logit_scale.data.fill_(2.0)
    model.logit_bias.data.fill_(-1.5)
    model.save_pretrained(folder)
    images = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    SiglipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def write_judge(folder: Path) -> Path:
    """A chat model that reads images: LLaVA with 2 layers each and a word for each token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(2)
    words = ["<unk>", "<pad>", "<image>", "user", "assistant", ":", *"01234", "Score", *WORDS.split()]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    made = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token="<pad>", additional_special_tokens=["<image>"]
    )
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**tower, image_size=SIDE, patch_size=14),
        text_config=LlamaConfig(**tower, vocab_size=len(vocabulary), num_key_value_heads=2),
        image_token_index=vocabulary["<image>"], vision_feature_layer=-1,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    _spread(model)
    model.save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    LlavaProcessor(
        images, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template="{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}assistant : {% endif %}",
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _spread(model: torch.nn.Module) -> None:
    """Weights large enough that different inputs give clearly different embeddings."""
    for parameter in model.parameters():
        parameter.data.add_(0.15 * torch.randn_like(parameter))


def _tokenizer(folder: Path):
    import sentencepiece
    from transformers import SiglipTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([WORDS] * 20 + WORDS.split() * 5), model_writer=written, vocab_size=60,
        model_type="unigram", hard_vocab_limit=False, minloglevel=2, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(written.getvalue())
    return SiglipTokenizer(str(folder / "spiece.model"), model_max_length=16)
